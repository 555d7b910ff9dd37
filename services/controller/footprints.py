"""How much memory each resident unit takes on this host, read from the processes themselves.

Triton runs a process of its own for every instance of a Python (or Python-based) model:
`triton_python_backend_stub <repository>/<model>/<version>/<file> …`, a child of tritonserver. Its
proportional set size counts what it shares with others once in all. Peaks between two looks
count too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import psutil

from services.controller.core.entities import Unit
from services.controller.core.memory import Memory
from shoal.names import parse_version

STUB: Final = "triton_python_backend_stub"
RAM: Final = "ram"


@dataclass(frozen=True, slots=True)
class Footprints:
    """Bytes by unit and resource. `others`: the server process itself."""

    units: Mapping[Unit, Memory]
    others: Memory


def find_server(address: str) -> psutil.Process | None:
    """The tritonserver on this host that listens on the port of `address` (host:port). Its id is
    no good for that: another fleet on the host may use the same."""
    port = int(address.rpartition(":")[2])
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "tritonserver" and _listens(process, port):
            return process
    return None


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        sockets = process.net_connections("tcp")
    except psutil.Error:
        return False
    return any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets)


def measure(server: psutil.Process) -> Footprints | None:
    """What each unit on `server` takes now; None when the server is gone. Costs about a
    millisecond a process, so it belongs in a thread."""
    units: dict[Unit, int] = {}
    try:
        others = _proportional(server)
        for child in server.children():
            try:
                unit = stub_unit(child.cmdline())
                if unit is not None:
                    units[unit] = units.get(unit, 0) + _proportional(child)
            except (psutil.Error, OSError):
                continue
    except (psutil.Error, OSError):
        return None
    return Footprints({unit: {RAM: size} for unit, size in units.items()}, {RAM: others})


def stub_unit(command: list[str]) -> Unit | None:
    """The unit that a stub's command line names: `[stub, …/<model>/<version>/<file>, …]`."""
    if len(command) < 2 or PurePosixPath(command[0]).name != STUB:
        return None
    parts = PurePosixPath(command[1]).parts
    version = parse_version(parts[-2]) if len(parts) >= 3 else None
    return None if version is None else Unit(parts[-3], version)


def _proportional(process: psutil.Process) -> int:
    """Proportional set size, as it was when the process was at its largest.

    The kernel keeps the high-water mark of the resident size alone. What a process had then beyond
    what it has now was its own: work space of a load or of an inference."""
    shared_out = int(process.memory_full_info().pss)
    sizes = dict.fromkeys((b"VmHWM", b"VmRSS"), 0)
    for line in Path(f"/proc/{process.pid}/status").read_bytes().splitlines():
        name, _, rest = line.partition(b":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) * 1024
    return shared_out + max(0, sizes[b"VmHWM"] - sizes[b"VmRSS"])
