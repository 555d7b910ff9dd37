"""Ports that are listened on by one program only."""

import errno
import socket


class PortTaken(Exception):
    """The address is in use by another program."""


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket on `host` (a name or an address) and `port` (0: any free one).

    Whoever takes it closes it. Raises PortTaken, or OSError where the host isn't this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # For a port whose last connections are in TIME_WAIT; on Linux it lets no two listen.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Only one of two sockets bound so may listen, and it is better to know now.
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortTaken(
            f"{host}:{port} is taken by another program: stop it, or choose another port"
        ) from error
    return listener
