"""Ports that are listened on by one program only."""

import errno
import socket


class PortTaken(Exception):
    """The address is in use by another program."""


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening TCP socket on `host` (a name or an address) and `port` (0: any free one).
    `shared`: with others that were made so.

    Whoever takes it closes it. Raises PortTaken, or OSError where the host isn't this machine's.
    """
    listener = _bound(host, port, shared=shared)
    try:
        # Only one of two sockets bound so may listen, and it is better to know now.
        listener.listen()
    except OSError as error:
        listener.close()
        raise _meaning(error, host, port) from error
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """A bound TCP socket that doesn't listen, beside which shared ones may. Raises as `listen`."""
    with listen(host, port) as alone:
        port = alone.getsockname()[1]
    return _bound(host, port, shared=True)


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        # For a port whose last connections are in TIME_WAIT; on Linux it lets no two listen.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _meaning(error, host, port) from error
    return bound


def _meaning(error: OSError, host: str, port: int) -> Exception:
    if error.errno != errno.EADDRINUSE:
        return error
    return PortTaken(f"{host}:{port} is taken by another program: stop it, or choose another port")
