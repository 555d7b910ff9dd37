"""Ports on loopback, each taken exclusively before anything is started on it.

Two gRPC servers can share a port without noticing, so a port is claimed by listening on it until
its part starts. From then on, and whenever a part starts anew, nobody listens for a moment: so that
no other stack takes the port meanwhile, the process that claimed it keeps it in its name.
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
    """Free ports, which no other stack takes while this process lives. Raises PortTaken."""
    with contextlib.closing(Claims()) as claims:
        return tuple(claims.take(0) for _ in range(count))


class Claims:
    """Ports held from `take` to `close`; none is handed out twice in between."""

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

    def take(self, port: int, key: str = "") -> int:
        """`port`, or a free one for 0. `key`: the setting that changes it.

        Raises PortTaken, which says who has it and what to change.
        """
        if port == 0:
            return self._pick()
        change = f"{flag(key)} or {variable(key)} chooses another port, 0 a free one."
        if port in self._held:
            raise PortTaken(f"{flag(key)}: {port} is given to another part already")
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
        """Listen no more: the parts take them now."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _pick(self) -> int:
        """A port below those that the kernel gives to outgoing connections.

        A client that keeps trying to reach a port of that range while its server restarts can be
        given the very same port for its own end, and then keeps the server from coming back.
        """
        for port in _candidates():
            with contextlib.suppress(ports.PortTaken, OSError):
                self._held[port] = _claimed(port)
                return port
        raise PortTaken(f"no free port was found on {LOOPBACK} between {_LOWEST_PICK} and 65535")


def _claimed(port: int) -> socket.socket:
    """A listening socket. Raises PortTaken when somebody listens there or keeps it, or OSError."""
    listener = listen(LOOPBACK, port)
    try:
        _keep(port)
    except ports.PortTaken:
        listener.close()
        raise
    return listener


def _keep(port: int) -> None:
    """Binds an abstract Unix socket, which like the port belongs to the network namespace and ends
    with the process. Raises PortTaken. Where there are none (they are Linux's), nothing is kept."""
    if port in _kept:
        return
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0shoal-port-{port}")
    except OSError as error:
        name.close()
        if error.errno == errno.EADDRINUSE:
            raise ports.PortTaken(f"another stack keeps {LOOPBACK}:{port}") from error
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
    return "another program (whose owner this user may not see, or which is about to listen)"
