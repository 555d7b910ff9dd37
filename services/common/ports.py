"""Ports that only one program listens on."""

import errno
import socket


class PortTaken(Exception):
    """The address is in use by another program."""


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Open a listening TCP socket on `host` (a name or an address) and `port` (0: a free one).

    A `shared` port is shared with other sockets opened so. The caller closes the socket. Raises
    PortTaken, or OSError if the host isn't this machine's.
    """
    listener = _bound(host, port, shared=shared)
    try:
        # Two sockets can be bound like this, but only one can listen: find out now.
        listener.listen()
    except OSError as error:
        listener.close()
        raise _meaning(error, host, port) from error
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """Bind a TCP socket without listening, beside which shared ones can. Raises like `listen`."""
    with listen(host, port) as alone:
        port = alone.getsockname()[1]
    return _bound(host, port, shared=True)


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        # Allows a port with connections in TIME_WAIT. On Linux it does not let two sockets listen.
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
