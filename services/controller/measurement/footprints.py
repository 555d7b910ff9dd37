"""Footprints: the memory that each resident unit takes on this host, read from its processes.

For every instance of a Python (or Python-based) model, Triton runs a process of its own,
`triton_python_backend_stub <repository>/<model>/<version>/<file> …`, a child of tritonserver. Its
proportional set size counts memory that processes share only once in all. Peaks between two looks
count as well. A process that was killed stays a zombie, without a command line, until Triton
unloads its unit, so it is remembered which process belongs to which unit.
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

_COMMAND_NAME: Final = STUB[:15]  # what the kernel keeps of a zombie's name


@dataclass(frozen=True, slots=True)
class Stub:
    """A process of a unit, which Triton's Python backend calls a stub."""

    unit: Unit
    process: psutil.Process

    @property
    def alive(self) -> bool:
        """True while the process holds memory: it exists and is no zombie."""
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@dataclass(frozen=True, slots=True)
class Footprints:
    """The bytes that the units on a server take, by unit and resource.

    `others`: bytes of the server process itself. `stubs`: the units' processes by pid, dead ones
    included. `nameless`: how many more are dead, without it being known whose they were.
    """

    units: Mapping[Unit, Memory]
    others: Memory
    stubs: Mapping[int, Stub] = field(default_factory=dict)
    nameless: int = 0


def find_server(address: str) -> psutil.Process | None:
    """Return the tritonserver on this host that listens on the port of `address` (host:port).

    Its id would not do: another fleet on the host may use the same one.
    """
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
    """Return what each unit on `server` takes; None when the server is gone.

    Takes about a millisecond for each process, so it belongs in a thread. `known`: the processes as
    of the last look. `on_gpus`: bytes on GPUs by pid and resource.
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
    """Return the processes of the server's units by pid, and the number of dead nameless ones.

    Dead processes of known units are among the former. Raises psutil.Error.
    """
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
    """Return which of `units`, all of which had processes, cannot answer any longer, and why."""
    causes: dict[Unit, str] = {}
    for unit in units:
        alive = {pid: stub.alive for pid, stub in found.stubs.items() if stub.unit == unit}
        dead = sorted(pid for pid, living in alive.items() if not living)
        if dead:
            causes[unit] = f"its process {', '.join(map(str, dead))} is dead"
        elif not alive:
            causes[unit] = "its process is gone"
    return causes


def stub_unit(command: list[str]) -> Unit | None:
    """Return the unit that a stub's command line names: `[stub, …/<model>/<version>/<file>, …]`."""
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
    """Return the proportional set size in bytes, as it was when the process was at its largest.

    The kernel keeps the high-water mark of the resident size only. What the process had then beyond
    what it has at present counts as its own: it was the working space of a load or an inference.
    """
    shared_out = int(process.memory_full_info().pss)
    sizes = dict.fromkeys((b"VmHWM", b"VmRSS"), 0)
    for line in Path(f"/proc/{process.pid}/status").read_bytes().splitlines():
        name, _, rest = line.partition(b":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) * 1024
    return shared_out + max(0, sizes[b"VmHWM"] - sizes[b"VmRSS"])
