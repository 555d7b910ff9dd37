"""Ports on loopback, each claimed exclusively before a part starts on it.

Two gRPC servers can share a port without noticing, so a port is claimed by listening on it until
its part starts. Then, and whenever a part restarts, nobody listens for a moment. So that no other
stack takes the port meanwhile, the process that claimed it also holds a name for it.
"""

import contextlib
import errno
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from services.common import ports
from services.common.ports import listen
from services.embedded.errors import PortTaken
from services.embedded.settings import flag, variable

LOOPBACK: Final = "127.0.0.1"

_LOWEST_PICK: Final = 20_000
_PICKS: Final = 100


_kept: Final[set[int]] = set()


def pick(count: int) -> tuple[int, ...]:
    """Return free ports that no other stack takes while this process lives. Raises PortTaken."""
    with contextlib.closing(Claims()) as claims:
        return tuple(claims.take(0) for _ in range(count))


class Claims:
    """Ports that are held from `take` to `close`, each given out once."""

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

    def take(self, port: int, key: str = "") -> int:
        """Claim `port`, or a free one for 0, and return it. `key` is the setting that changes it.

        Raises PortTaken, which says who has the port and what to change.
        """
        if port == 0:
            return self._pick()
        change = f"Choose another port with {flag(key)} or {variable(key)}; 0 picks a free one."
        if port in self._held:
            raise PortTaken(f"{flag(key)}: {port} is already given to another part")
        try:
            self._held[port] = _claimed(port)
        except ports.PortTaken as error:
            raise PortTaken(f"{LOOPBACK}:{port} is taken by {_owner(port)}. {change}") from error
        except OSError as error:
            raise PortTaken(
                f"{LOOPBACK}:{port} cannot be used: {error.strerror}. {change}"
            ) from error
        return port

    def close(self) -> None:
        """Stop listening, so that the parts can."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _pick(self) -> int:
        """Claim a port below those that the kernel gives to outgoing connections.

        A client that keeps connecting to a port in that range while the server restarts can be
        given the same port for its own end, and then keeps the server from coming back.
        """
        for port in _candidates():
            with contextlib.suppress(ports.PortTaken, OSError):
                self._held[port] = _claimed(port)
                return port
        raise PortTaken(f"no free port was found on {LOOPBACK} between {_LOWEST_PICK} and 65535")


def _claimed(port: int) -> socket.socket:
    """Open a listening socket. Raises PortTaken if the port is used or held, or OSError."""
    listener = listen(LOOPBACK, port)
    try:
        _keep(port)
    except ports.PortTaken:
        listener.close()
        raise
    return listener


def _keep(port: int) -> None:
    """Hold a port's name: an abstract Unix socket.

    Like the port, it belongs to the network namespace and ends with the process. Raises PortTaken.
    Systems other than Linux have none, and nothing is held there.
    """
    if port in _kept:
        return
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0shoal-port-{port}")
    except OSError as error:
        name.close()
        if error.errno == errno.EADDRINUSE:
            raise ports.PortTaken(f"another stack holds {LOOPBACK}:{port}") from error
    else:
        name.detach()  # as long as the process lives
        _kept.add(port)


def _candidates() -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if first - _LOWEST_PICK >= _PICKS:
            yield from random.sample(range(_LOWEST_PICK, first), _PICKS)
    yield from random.sample(range(_LOWEST_PICK, 65536), _PICKS)


def _owner(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN
            if listening and connection.laddr[1:] == (port,) and connection.pid:
                process = psutil.Process(connection.pid)
                words = " ".join(process.cmdline()) or process.name()
                return f"process {process.pid} ({words[:80]})"
    return "another program (of another user, or about to listen)"
