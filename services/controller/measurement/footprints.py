"""How much memory each resident unit takes on this host, read from the processes themselves.

Triton runs a process of its own for every instance of a Python (or Python-based) model:
`triton_python_backend_stub <repository>/<model>/<version>/<file> …`, a child of tritonserver. Its
proportional set size counts what it shares with others once in all. Peaks between two looks
count too. One that was killed stays a zombie, without a command line, until Triton unloads its
unit: so which process is whose is remembered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

import psutil

from services.controller.core import memory
from services.controller.core.entities import Unit
from services.controller.core.memory import Memory
from shoal.names import parse_version

STUB: Final = "triton_python_backend_stub"
RAM: Final = "ram"

_COMMAND_NAME: Final = STUB[:15]  # as much of it as the kernel keeps of a zombie


@dataclass(frozen=True, slots=True)
class Stub:
    """A process of a unit's."""

    unit: Unit
    process: psutil.Process

    @property
    def alive(self) -> bool:
        """Whether it holds memory: it is there, and no zombie."""
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@dataclass(frozen=True, slots=True)
class Footprints:
    """Bytes by unit and resource. `others`: the server process itself. `stubs`: the processes that
    it has, dead ones included, by pid; `nameless`: how many dead ones cannot be told apart."""

    units: Mapping[Unit, Memory]
    others: Memory
    stubs: Mapping[int, Stub] = field(default_factory=dict)
    nameless: int = 0


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


def measure(
    server: psutil.Process,
    known: Mapping[int, Stub] | None = None,
    on_gpus: Mapping[int, Memory] | None = None,
) -> Footprints | None:
    """What each unit on `server` takes now; None when the server is gone. Costs about a
    millisecond a process, so it belongs in a thread.

    `known`: the processes as of the last look. `on_gpus`: bytes on GPUs by pid (`gpus`).
    """
    units: dict[Unit, Memory] = {}
    gpu = on_gpus or {}
    try:
        others = memory.plus({RAM: _proportional(server)}, gpu.get(server.pid, {}))
        stubs, nameless = stubs_of(server, known or {})
    except (psutil.Error, OSError):
        return None
    for pid, stub in stubs.items():
        try:
            amount = {RAM: _proportional(stub.process)} if stub.alive else {}
        except (psutil.Error, OSError):
            continue
        if amount:
            units[stub.unit] = memory.plus(units.get(stub.unit, {}), amount, gpu.get(pid, {}))
    return Footprints(units, others, stubs, nameless)


def stubs_of(server: psutil.Process, known: Mapping[int, Stub]) -> tuple[Mapping[int, Stub], int]:
    """The processes of its units by pid, dead ones included, and how many more dead ones it has.
    Raises psutil.Error."""
    stubs: dict[int, Stub] = {}
    nameless = 0
    for child in server.children():
        stub = _stub(child, known)
        if stub is None:
            nameless += _is_dead_stub(child)
        else:
            stubs[child.pid] = stub
    return stubs, nameless


def broken(units: Iterable[Unit], found: Footprints) -> Mapping[Unit, str]:
    """Which of `units`, all with processes of their own, cannot answer any more, and why."""
    told: dict[Unit, str] = {}
    for unit in units:
        alive = {pid: stub.alive for pid, stub in found.stubs.items() if stub.unit == unit}
        dead = sorted(pid for pid, living in alive.items() if not living)
        if dead:
            told[unit] = f"its process {', '.join(map(str, dead))} is dead"
        elif not alive:
            told[unit] = "its process is gone"
    return told


def stub_unit(command: list[str]) -> Unit | None:
    """The unit that a stub's command line names: `[stub, …/<model>/<version>/<file>, …]`."""
    if len(command) < 2 or PurePosixPath(command[0]).name != STUB:
        return None
    parts = PurePosixPath(command[1]).parts
    version = parse_version(parts[-2]) if len(parts) >= 3 else None
    return None if version is None else Unit(parts[-3], version)


def _stub(process: psutil.Process, known: Mapping[int, Stub]) -> Stub | None:
    remembered = known.get(process.pid)
    if remembered is not None and remembered.process == process:
        return remembered
    try:
        unit = stub_unit(process.cmdline())
    except (psutil.Error, OSError):
        return None
    return None if unit is None else Stub(unit, process)


def _is_dead_stub(process: psutil.Process) -> bool:
    try:
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return zombie and process.name().startswith(_COMMAND_NAME)
    except psutil.Error:
        return False


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
