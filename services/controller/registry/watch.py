"""The exchange with the Registry: its catalogue is followed, and what was learned reported."""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import grpc
import structlog

from services.controller.core.entities import Unit
from services.controller.core.events import Failed, Learned, Used
from services.controller.registry.catalogue import Catalogue
from shoal.names import version_name
from shoal.registry.v1 import registry_service_pb2 as wire
from shoal.registry.v1 import types_pb2

CALL_SECONDS: Final = 5.0
GATHER_SECONDS: Final = 1.0  # what is learned in this time is reported in one call
RETRY_SECONDS: Final = 0.5
PAGE: Final = 1000
CAUSE_CHARACTERS: Final = 1000  # that are kept of why a load failed

_log = structlog.get_logger(__name__)


class RegistryWatch:
    """The watch that keeps a catalogue as the Registry has it.

    `connected`: whether the Registry is heard from; while it is not, the catalogue stays as it is.
    `synchronized`: set once the catalogue has been heard for the first time.
    """

    def __init__(self, stub: Any, catalogue: Catalogue) -> None:
        self._stub = stub
        self._catalogue = catalogue
        self._revision = 0
        self._listeners: list[Callable[[frozenset[str]], None]] = []
        self._changed = asyncio.Event()  # set by each change
        self.connected = False
        self.synchronized = asyncio.Event()

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Have `listener` called with the names of the models that change, each time."""
        self._listeners.append(listener)

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until `holds` is true of the catalogue, and whoever listens knows the state of it.

        Returns whether that was so within `seconds`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
                return True
        return False

    async def load_footprints(self) -> None:
        """Read all that was learned so far, as soon as the Registry answers."""
        token = ""
        while True:
            request = wire.ListFootprintsRequest(page_size=PAGE, page_token=token)
            try:
                page = await self._stub.ListFootprints(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                _log.warning("footprints cannot be read yet", cause=error.details())
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for footprint in page.footprints:
                self._catalogue.learn(footprint)
            token = page.next_page_token
            if not token:
                return

    async def run(self) -> None:
        """Follow the Registry, for ever."""
        while True:
            try:
                request = wire.WatchCatalogRequest(start_revision=self._revision)
                async for response in self._stub.WatchCatalog(request):
                    self.connected = True
                    self._apply(response)
            except grpc.aio.AioRpcError as error:
                if self.connected:
                    _log.warning("registry lost, its catalogue is kept", cause=error.details())
            self.connected = False
            await asyncio.sleep(RETRY_SECONDS)

    def _apply(self, response: wire.WatchCatalogResponse) -> None:
        kind = response.WhichOneof("event")
        if kind == "snapshot":
            self._tell(self._catalogue.replace(response.snapshot.entries, (), all_=True))
        elif kind == "delta":
            delta = response.delta
            self._tell(self._catalogue.replace(delta.entries, delta.removed_models, all_=False))
        self._revision = response.revision
        self.synchronized.set()

    def _tell(self, models: frozenset[str]) -> None:
        for listener in self._listeners:
            listener(models)
        self._changed.set()


class UsedAt(NamedTuple):
    """A unit's uses, the last of them at `last_used` in seconds since the epoch."""

    used: Used
    last_used: float

    @property
    def unit(self) -> Unit:
        return self.used.unit


class FailedAt(NamedTuple):
    """The failure of a unit's last load, with when it may be tried again: `retry_at` in seconds
    since the epoch."""

    failed: Failed
    retry_at: float

    @property
    def unit(self) -> Unit:
        return self.failed.unit


Report = Learned | UsedAt | FailedAt


async def report(stub: Any, queue: "asyncio.Queue[Report]") -> None:
    """Report what was learned to the Registry, for ever; while it is away, wait for it."""
    while True:
        batch = [await queue.get()]
        await asyncio.sleep(GATHER_SECONDS)
        while not queue.empty():
            batch.append(queue.get_nowait())
        newest = {(type(learned), learned.unit): learned for learned in batch}
        request = wire.ReportFootprintsRequest(footprints=map(_footprint, newest.values()))
        await _until_done(functools.partial(stub.ReportFootprints, request, timeout=CALL_SECONDS))


async def _until_done(call: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                _log.warning("the registry refused footprints", cause=error.details())
                return
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


def _footprint(learned: Report) -> types_pb2.Footprint:
    if isinstance(learned, FailedAt):
        return _failed(learned.failed, learned.retry_at)
    if isinstance(learned, UsedAt):
        used = learned.used
        footprint = types_pb2.Footprint(
            version=version_name(*used.unit),
            config_digest=used.config_digest,
            fingerprint=used.fingerprint,
            uses=used.uses,
        )
        footprint.last_use_time.FromMicroseconds(round(learned.last_used * 1e6))
        return footprint
    footprint = types_pb2.Footprint(
        version=version_name(*learned.unit),
        config_digest=learned.config_digest,
        memory=learned.memory,
        fingerprint=learned.fingerprint,
    )
    if learned.load_seconds is not None:
        footprint.load_duration.FromMilliseconds(round(learned.load_seconds * 1000))
    return footprint


def _failed(failed: Failed, retry_at: float) -> types_pb2.Footprint:
    footprint = types_pb2.Footprint(
        version=version_name(*failed.unit),
        config_digest=failed.config_digest,
        fingerprint=failed.fingerprint,
    )
    footprint.failure.SetInParent()  # without a cause: it has loaded
    if failed.failing is not None:
        failing = failed.failing
        footprint.failure.server = failing.server
        footprint.failure.cause = _cut(failing.cause)
        footprint.failure.count, footprint.failure.set_aside = failing.count, failing.set_aside
        footprint.failure.retry_time.FromMicroseconds(round(retry_at * 1e6))
    return footprint


def _cut(cause: str) -> str:
    return cause if len(cause) <= CAUSE_CHARACTERS else cause[: CAUSE_CHARACTERS - 1] + "…"
