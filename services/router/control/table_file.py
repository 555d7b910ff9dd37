"""Keeps the last placement table on disk, so that a Router can start while the Controller is away.

There is one file for each Router port, replaced atomically. An entry is used only if the server at
its address still says that it is the one named by the entry."""

import asyncio
import os
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.common import channels
from services.router.control.placement_watch import change_of
from services.router.core.routing.table import NONE, Table
from shoal.controller.v1 import placement_pb2 as wire

WRITE_SECONDS: Final = 1.0
ASK_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)


class TableFile:
    """A placement table on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._revision = wire.Revision()
        self._unregistered = False
        self._models: dict[str, wire.ModelRoute] = {}
        self._servers: dict[str, wire.ServerEndpoint] = {}
        self._changed = asyncio.Event()

    def keep(self, response: wire.WatchPlacementsResponse) -> None:
        """Take in a message of the stream. It is written later."""
        kind = response.WhichOneof("message")
        if kind == "snapshot":
            self._models = {route.model: route for route in response.snapshot.models}
            self._servers = {server.server: server for server in response.snapshot.servers}
        elif kind == "delta":
            delta = response.delta
            self._models.update((route.model, route) for route in delta.models)
            self._servers.update((server.server, server) for server in delta.servers)
            for model in delta.removed_models:
                self._models.pop(model, None)
            for removed in delta.removed_servers:
                self._servers.pop(removed, None)
        else:
            return
        self._revision = response.revision
        self._unregistered = response.unregistered_resident
        self._changed.set()

    async def write(self) -> None:
        """Write changes at most once a second, without end. A failed write is tried again: requests
        do not depend on it."""
        failing = False
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await asyncio.to_thread(self._replace, self._snapshot().SerializeToString())
            except OSError as error:
                if not failing:
                    _log.warning("cannot write the placement table", cause=str(error))
                failing = True
                self._changed.set()
            else:
                failing = False
            await asyncio.sleep(WRITE_SECONDS)

    def _snapshot(self) -> wire.WatchPlacementsResponse:
        return wire.WatchPlacementsResponse(
            revision=self._revision,
            unregistered_resident=self._unregistered,
            snapshot=wire.PlacementSnapshot(
                servers=self._servers.values(), models=self._models.values()
            ),
        )

    def _replace(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(self._path)

    async def restore(self, table: Table) -> bool:
        """Fill an empty table from the file, leaving out servers that are not what they were.
        Returns whether it did; it does not if the Controller has filled the table in the
        meantime."""
        try:
            kept = _parse(await asyncio.to_thread(self._path.read_bytes))
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            _log.warning("cannot use the placement table on disk", cause=str(error))
            return False
        servers = kept.snapshot.servers
        answers = await asyncio.gather(
            *(_is_server(server.server, server.address) for server in servers)
        )
        trusted = {s.server for s, true in zip(servers, answers, strict=True) if true}
        for route in kept.snapshot.models:
            for version in route.versions:
                version.servers[:] = [server for server in version.servers if server in trusted]
        if table.revision != NONE:
            return False
        table.apply(change_of(kept))
        _log.warning("started from the placement table on disk", servers=sorted(trusted))
        return True


def _parse(data: bytes) -> wire.WatchPlacementsResponse:
    """Parse the file. Raises ValueError if it is not a snapshot: an empty file would otherwise be
    an empty table."""
    try:
        kept = wire.WatchPlacementsResponse.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    if kept.WhichOneof("message") != "snapshot":
        raise ValueError(f"{len(data)} bytes without a snapshot")
    return kept


async def _is_server(server: str, address: str) -> bool:
    """Return whether the Triton at `address` says that its id is `server`."""
    async with channels.control(address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            request = service_pb2.ServerMetadataRequest()
            reply = await stub.ServerMetadata(request, timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.name == server)
