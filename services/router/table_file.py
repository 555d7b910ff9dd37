"""The last placement table on disk, so that a Router can start while the Controller is away.

One file per Router port, replaced atomically. An entry is used only when the server at its address
still says that it is the one that the entry names.
"""

import asyncio
import os
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.common import channels
from services.router.core.table import Table
from services.router.placement_watch import change_of
from shoal.controller.v1 import placement_pb2 as wire

WRITE_SECONDS: Final = 1.0
ASK_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)


class TableFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._snapshot = wire.WatchPlacementsResponse()
        self._changed = asyncio.Event()

    def keep(self, response: wire.WatchPlacementsResponse) -> None:
        """Take a message of the stream into what will be written."""
        snapshot = self._snapshot.snapshot
        if response.WhichOneof("message") == "snapshot":
            self._snapshot.CopyFrom(response)
        elif response.WhichOneof("message") == "delta":
            delta = response.delta
            models = {route.model: route for route in snapshot.models}
            models.update({route.model: route for route in delta.models})
            servers = {server.server: server for server in snapshot.servers}
            servers.update({server.server: server for server in delta.servers})
            merged = wire.PlacementSnapshot(
                models=[m for name, m in models.items() if name not in set(delta.removed_models)],
                servers=[s for id_, s in servers.items() if id_ not in set(delta.removed_servers)],
            )
            snapshot.CopyFrom(merged)
            self._snapshot.revision.CopyFrom(response.revision)
        else:
            return
        self._changed.set()

    async def write(self) -> None:
        """Write what changed, at most once a second, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.to_thread(self._replace, self._snapshot.SerializeToString())
            await asyncio.sleep(WRITE_SECONDS)

    def _replace(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(self._path)

    async def restore(self, table: Table) -> bool:
        """Fill an empty table from the file, without the servers that are not what they were.
        Says whether there was anything."""
        try:
            data = await asyncio.to_thread(self._path.read_bytes)
            self._snapshot.ParseFromString(data)
        except (OSError, ValueError) as error:
            _log.info("no placements kept from before", cause=str(error))
            return False
        servers = self._snapshot.snapshot.servers
        answers = await asyncio.gather(*(_is(server.server, server.address) for server in servers))
        trusted = {s.server for s, true in zip(servers, answers, strict=True) if true}
        for route in self._snapshot.snapshot.models:
            for version in route.versions:
                kept = [server for server in version.servers if server in trusted]
                del version.servers[:]
                version.servers.extend(kept)
        table.apply(change_of(self._snapshot))
        _log.warning("started from the placements kept on disk", servers=sorted(trusted))
        return True


async def _is(server: str, address: str) -> bool:
    """Whether the Triton at `address` says that its id is `server`."""
    async with channels.control(address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            request = service_pb2.ServerMetadataRequest()
            reply = await stub.ServerMetadata(request, timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.name == server)
