"""Tensors in memory shared by callers and servers on this host.

Requests name regions, and the Router replaces these names with those that the servers know. Callers
can thus reach neither another caller's regions nor those that belong to a server."""

import asyncio
import os
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import structlog
from tritonclient.grpc import service_pb2

from services.common.caller import LOCAL, CallerPolicy
from services.common.tasks import TaskScope
from services.router.call import Answer, Call, RefusedByServers
from services.router.control.answers import Rejected
from services.router.control.placement_watch import PlacementWatch
from services.router.control.servers import ServerAnswer, ServerCalls, all_accepted
from services.router.core.errors import (
    NoController,
    NotProxied,
    RegionBounds,
    RegionInUse,
    RegionRefused,
    RegionUnopened,
)
from services.router.core.shared_memory import (
    CUDA,
    SYSTEM,
    MappedMemory,
    MemorySource,
    Owner,
    Region,
    Regions,
    file_name,
    require_inside,
)
from shoal.controller.v1 import controller_service_pb2 as wire

FOLDER: Final = Path("/dev/shm")  # noqa: S108  where shm_open has its names
CLOSING_SECONDS: Final = 2.0  # for servers to release what is no longer used
LETTING_GO_SECONDS: Final = 2.0  # until servers stop using what they have answered

_FIRST_PAUSE: Final = 0.01  # seconds; doubles each time
_STUB: Final = "triton_python_backend_stub"
_LOOPBACK: Final = ("127.", "localhost:", "[::1]:", "unix:")

_STATUS: Final = {
    SYSTEM: wire.SERVER_CALL_SYSTEM_SHARED_MEMORY_STATUS,
    CUDA: wire.SERVER_CALL_CUDA_SHARED_MEMORY_STATUS,
}
_REGISTER: Final = {
    SYSTEM: wire.SERVER_CALL_SYSTEM_SHARED_MEMORY_REGISTER,
    CUDA: wire.SERVER_CALL_CUDA_SHARED_MEMORY_REGISTER,
}
_UNREGISTER: Final = {
    SYSTEM: wire.SERVER_CALL_SYSTEM_SHARED_MEMORY_UNREGISTER,
    CUDA: wire.SERVER_CALL_CUDA_SHARED_MEMORY_UNREGISTER,
}

_log = structlog.get_logger(__name__)


class SharedMemory:
    """Registers callers' regions with all servers.

    `router` tells this Router from others on the host, and stays the same across restarts: regions
    that an earlier process left on the servers are removed. `shares_port` says that other workers
    answer on the same port, which do not know about each other's regions."""

    def __init__(
        self,
        watch: PlacementWatch,
        servers: ServerCalls,
        callers: CallerPolicy,
        *,
        router: str,
        shares_port: bool = False,
    ) -> None:
        self._watch = watch
        self._servers = servers
        self._callers = callers
        self._prefix = f"shoal.{router}."
        self._shares_port = shares_port
        self._regions = Regions()
        self._changing = asyncio.Lock()
        self._letting_go = TaskScope("shared memory")

    def answers(self) -> Mapping[str, Answer]:
        """Return the answer to each method, by name."""
        return {
            "SystemSharedMemoryStatus": self.system_status,
            "SystemSharedMemoryRegister": self.register_system,
            "SystemSharedMemoryUnregister": self.unregister_system,
            "CudaSharedMemoryStatus": self.cuda_status,
            "CudaSharedMemoryRegister": self.register_cuda,
            "CudaSharedMemoryUnregister": self.unregister_cuda,
        }

    async def close(self) -> None:
        """Release what is no longer used. Call it when no more requests arrive; the next Router
        sweeps away what stays mapped."""
        await self._letting_go.close(CLOSING_SECONDS)

    # --- what is registered -----------------------------------------------------------------------

    async def system_status(self, request: Any, call: Call) -> Any:
        """List the caller's own regions. Raises NotProxied, RegionNotFound."""
        owner = self._owner("SystemSharedMemoryStatus", call)
        reply = service_pb2.SystemSharedMemoryStatusResponse()
        for region in self._regions_named(owner, SYSTEM, request.name):
            row = reply.regions[region.name]
            row.name, row.key = region.name, region.key
            row.offset, row.byte_size = region.offset, region.size
        return reply

    async def cuda_status(self, request: Any, call: Call) -> Any:
        """List the caller's own regions. Raises NotProxied, RegionNotFound."""
        owner = self._owner("CudaSharedMemoryStatus", call)
        reply = service_pb2.CudaSharedMemoryStatusResponse()
        for region in self._regions_named(owner, CUDA, request.name):
            row = reply.regions[region.name]
            row.name, row.byte_size = region.name, region.size
            row.device_id = region.mapped.source.place[0]
        return reply

    def _regions_named(self, owner: Owner, kind: str, name: str) -> Any:
        return [self._regions.find(owner, kind, name)] if name else self._regions.of(owner, kind)

    async def register_system(self, request: Any, call: Call) -> Any:
        """Register a region of system memory.

        Raises NotProxied, RegionExists, RegionRefused, RegionUnopened, RegionInUse, and what
        ServerCalls and `all_accepted` raise."""
        owner = self._owner("SystemSharedMemoryRegister", call)
        name = request.name
        async with self._changing:
            self._regions.require_new(owner, name)
            source = await asyncio.to_thread(examine, name, request.key)
            require_inside(name, source, request.offset, request.byte_size)
            mapped = await self._map(owner, name, source, call)
            self._regions.add(Region(name, request.key, mapped, request.offset, request.byte_size))
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def register_cuda(self, request: Any, call: Call) -> Any:
        """Register a region of CUDA memory. Raises NotProxied, RegionExists, RegionRefused, and
        what ServerCalls and `all_accepted` raise."""
        owner = self._owner("CudaSharedMemoryRegister", call)
        handle, place = request.raw_handle.hex(), (request.device_id,)
        source = MemorySource(CUDA, handle, place, request.byte_size)
        async with self._changing:
            self._regions.require_new(owner, request.name)
            require_inside(request.name, source, 0, request.byte_size)
            mapped = await self._map(owner, request.name, source, call)
            self._regions.add(Region(request.name, "", mapped, 0, request.byte_size))
        return service_pb2.CudaSharedMemoryRegisterResponse()

    async def unregister_system(self, request: Any, call: Call) -> Any:
        """Unregister one of the caller's regions, or all for "". Raises NotProxied."""
        await self._unregister("SystemSharedMemoryUnregister", SYSTEM, request.name, call)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    async def unregister_cuda(self, request: Any, call: Call) -> Any:
        """Unregister one of the caller's regions, or all for "". Raises NotProxied."""
        await self._unregister("CudaSharedMemoryUnregister", CUDA, request.name, call)
        return service_pb2.CudaSharedMemoryUnregisterResponse()

    async def _unregister(self, method: str, kind: str, name: str, call: Call) -> None:
        owner = self._owner(method, call)
        async with self._changing:
            for mapped in self._regions.remove(owner, kind, name):
                await self._release_if_idle(mapped)

    # --- in requests ------------------------------------------------------------------------------

    def locate(self, owner: Owner, name: str, offset: int, size: int) -> tuple[MappedMemory, int]:
        """Return what Regions.locate returns.

        Raises RegionBounds also if the memory has been truncated, for a server that touches what is
        gone crashes. Raises NotProxied if a server on another host has joined the fleet."""
        mapped, begins = self._regions.locate(owner, name, offset, size)
        self._require_near("ModelInfer with shared memory")
        source = mapped.source
        if source.kind == SYSTEM:
            try:
                now = os.lstat(FOLDER / source.key.lstrip("/"))
            except OSError:
                return mapped, begins  # the name is gone, but mappings stay
            if (now.st_dev, now.st_ino) == source.place and now.st_size < begins + size:
                raise RegionBounds(part="offset + byte size", region=name)
        return mapped, begins

    async def map_again(self, mapped: MappedMemory) -> None:
        """Map the memory on servers that have started since."""
        await self._servers.ask(_REGISTER[mapped.source.kind], _registration(mapped), None)

    def released(self, mapped: MappedMemory) -> None:
        """Note that a request no longer uses the memory. If no region is left in it either, the
        servers release it."""
        mapped.in_flight -= 1
        if mapped.idle:
            self._letting_go.start(self._release_unused(mapped))

    async def _release_unused(self, mapped: MappedMemory) -> None:
        async with self._changing:
            await self._release_if_idle(mapped)

    # --- on the servers ---------------------------------------------------------------------------

    async def _map(
        self, owner: Owner, region: str, source: MemorySource, call: Call
    ) -> MappedMemory:
        known = self._regions.find_mapped(owner, region, source)
        if known is not None:
            return known
        if source.key in await self._sweep(source.kind):
            raise RegionInUse(region=region, retry_after=1.0)
        mapped = MappedMemory(self._prefix + secrets.token_hex(16), owner, source)
        answers = await self._servers.ask(
            _REGISTER[source.kind], _registration(mapped), call.deadline
        )
        # A server that cannot be reached maps it when it gets a request.
        reached = [answer for answer in answers if answer.reached]
        try:
            all_accepted("SharedMemoryRegister", reached or answers)
        except RefusedByServers as refused:
            raise RefusedByServers(
                refused.code, refused.text.replace(mapped.name, region)
            ) from None
        finally:
            if any(not answer.accepted for answer in reached):
                await self._unmap(mapped.source.kind, mapped.name, LETTING_GO_SECONDS)
        return mapped

    async def _release_if_idle(self, mapped: MappedMemory) -> None:
        if mapped.idle:
            self._regions.forget(mapped)
            await self._unmap(mapped.source.kind, mapped.name, LETTING_GO_SECONDS)

    async def _unmap(self, kind: str, name: str, patience: float) -> bool:
        """Return whether every server that can be reached has released the memory within `patience`
        seconds. For a moment after its answer to a request, Triton refuses to release what the
        request used."""
        # The requests for either kind have the same single field.
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name).SerializeToString()
        until, pause = time.monotonic() + patience, _FIRST_PAUSE
        while True:
            try:
                answers = await self._servers.ask(_UNREGISTER[kind], request, None)
            except (NoController, Rejected) as error:  # the next registration sweeps it away
                _log.warning("shared memory is still mapped", region=name, cause=str(error))
                return False
            refused = [answer for answer in answers if answer.reached and not answer.accepted]
            if not refused or time.monotonic() + pause > until:
                break
            await asyncio.sleep(pause)
            pause *= 2
        for answer in answers:
            if not answer.accepted:
                _log.warning(
                    "shared memory is still mapped",
                    server=answer.server,
                    region=name,
                    cause=answer.text,
                )
        return not refused

    async def _sweep(self, kind: str) -> set[str]:
        """Have the servers release memory that nobody here knows about. Returns the keys, if they
        have any, of what they keep."""
        request = service_pb2.SystemSharedMemoryStatusRequest().SerializeToString()
        known = {mapped.name for mapped in self._regions.mapped()}
        left: dict[str, str] = {}
        for answer in await self._servers.ask(_STATUS[kind], request, None):
            left |= self._own_mappings(kind, answer)
        names = sorted(left.keys() - known)
        return {left[name] for name in names if not await self._unmap(kind, name, 0)} - {""}

    def _own_mappings(self, kind: str, answer: ServerAnswer) -> dict[str, str]:
        """Return the names of what this Router has had mapped, with their keys; "" for memory
        without a key."""
        if not answer.accepted:
            return {}
        if kind == SYSTEM:
            system = service_pb2.SystemSharedMemoryStatusResponse.FromString(answer.response)
            found = {name: region.key for name, region in system.regions.items()}
        else:
            cuda = service_pb2.CudaSharedMemoryStatusResponse.FromString(answer.response)
            found = dict.fromkeys(cuda.regions, "")
        return {name: key for name, key in found.items() if name.startswith(self._prefix)}

    # --- who may ----------------------------------------------------------------------------------

    def _owner(self, method: str, call: Call) -> Owner:
        """Return the owner of the caller's regions. Raises NotProxied if memory cannot be
        shared."""
        if self._shares_port:
            raise NotProxied(
                method=method,
                hint="its workers do not know of each other's regions: run it with one.",
            )
        # A proxy's address does not tell where its clients are.
        if self._callers.caller(call.peer, ()) != LOCAL:
            raise NotProxied(
                method=method,
                hint="shared memory is for callers on its own host: send tensors in the request.",
            )
        self._require_near(method)
        return Owner(call.caller.tenant, call.caller.subject)

    def _require_near(self, method: str) -> None:
        """Raises NotProxied unless every server is on this host, since any of them may be
        chosen."""
        elsewhere = [
            server
            for server, address in self._watch.table.addresses.items()
            if not address.startswith(_LOOPBACK)
        ]
        if elsewhere:
            raise NotProxied(
                method=method,
                hint=f"not all servers are on its own host ({', '.join(sorted(elsewhere))} are "
                "not): send tensors in the request.",
            )


def examine(region: str, key: str) -> MemorySource:
    """Return the memory behind a key. Raises RegionRefused, RegionUnopened."""
    name = file_name(region, key)
    try:
        found = os.lstat(FOLDER / name)
    except OSError as error:
        raise RegionUnopened(key=key) from error
    if not stat.S_ISREG(found.st_mode):
        raise RegionUnopened(key=key)
    if name in backend_regions():
        raise RegionRefused(region=region, problem=f"the key {key!r} is a model's own memory")
    return MemorySource(SYSTEM, f"/{name}", (found.st_dev, found.st_ino), found.st_size)


def backend_regions() -> set[str]:
    """Return the names of the memory through which Tritons on this host talk to their models'
    processes."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words: list[str] = process.info["cmdline"] or []
        if len(words) > 2 and words[0].endswith(_STUB):
            found.add(words[2].lstrip("/"))
    return found


def _registration(mapped: MappedMemory) -> bytes:
    source = mapped.source
    if source.kind == SYSTEM:
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=mapped.name, key=source.key, offset=0, byte_size=source.size
        )
    else:
        request = service_pb2.CudaSharedMemoryRegisterRequest(
            name=mapped.name,
            raw_handle=bytes.fromhex(source.key),
            device_id=source.place[0],
            byte_size=source.size,
        )
    return bytes(request.SerializeToString())
