"""Completes configs with the fleet's own servers, where they run with auto-completion.

A version is loaded as any other, within its server's budget, and the server's config of it is given
to the Registry. Routers hear of the version only once its config is complete.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import grpc
import structlog

from services.common.errors import LoadFailed
from services.controller.core import events as ev
from services.controller.core.entities import Unit
from services.controller.core.errors import SetAside
from services.controller.core.view import FleetView
from services.controller.registry.catalogue import WAITING, Catalogue
from services.controller.triton.client import Triton, TritonGone, TritonRefused
from shoal.names import parse_version_name, version_name
from shoal.registry.v1 import registry_service_pb2 as wire

CALL_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 1.0
DEFER_SECONDS: Final = 30.0  # between two tries of a version for which there is no room

Ask = Callable[
    [Callable[[int], ev.ResidentWanted]], Awaitable[ev.Granted | ev.Refused | ev.Evicted]
]

_log = structlog.get_logger(__name__)


class Completer:
    """Has the versions that wait in the Registry loaded, and reports their configs.

    Those that somebody asks for are loaded at once. The others take spare room, one at a time.
    """

    def __init__(
        self,
        stub: Any,
        catalogue: Catalogue,
        view: FleetView,
        tritons: Mapping[str, Triton],
        ask: Ask,
        load_seconds: float,
    ) -> None:
        self._stub = stub
        self._catalogue = catalogue
        self._view = view
        self._tritons = tritons
        self._ask = ask
        self._load_seconds = load_seconds
        self._asked: list[Unit] = []
        self._others: list[Unit] = []
        #: The tasks under way, by unit and whether somebody asks for it.
        self._tasks: dict[tuple[Unit, bool], asyncio.Task[None]] = {}
        self._not_before: dict[Unit, float] = {}

    async def run(self) -> None:
        """Complete what waits, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(tasks))
            while True:
                await asyncio.sleep(RETRY_SECONDS)
                self._schedule(tasks)

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            try:
                async for response in self._stub.WatchCompletions(wire.WatchCompletionsRequest()):
                    found = [
                        Unit(*name)
                        for one in response.versions
                        if (name := parse_version_name(one))
                    ]
                    self._asked = found[: response.requested]
                    self._others = found[response.requested :]
                    self._schedule(tasks)
            except grpc.aio.AioRpcError as error:
                _log.debug("completions not followed", cause=error.details())
            await asyncio.sleep(RETRY_SECONDS)

    def _schedule(self, tasks: asyncio.TaskGroup) -> None:
        servers = self._view.servers.values()
        if not any(server.auto_complete and server.accepting for server in servers):
            return
        now = time.monotonic()
        for unit in self._asked:
            if self._not_before.get(unit, 0.0) <= now:
                self._start(tasks, unit, urgent=True)
        if not any(not urgent for _, urgent in self._tasks):
            for unit in self._others:
                if self._not_before.get(unit, 0.0) <= now and self._waits(unit):
                    self._start(tasks, unit, urgent=False)
                    break

    def _start(self, tasks: asyncio.TaskGroup, unit: Unit, *, urgent: bool) -> None:
        key = (unit, urgent)
        if key not in self._tasks and self._waits(unit):
            self._tasks[key] = tasks.create_task(self._complete(unit, urgent=urgent))
            self._tasks[key].add_done_callback(lambda _: self._tasks.pop(key))

    def _waits(self, unit: Unit) -> bool:
        version = self._catalogue.version(unit)
        return version is not None and version.state == WAITING

    async def _complete(self, unit: Unit, *, urgent: bool) -> None:
        version = self._catalogue.version(unit)
        assert version is not None
        report = wire.ReportCompletionRequest(
            name=version_name(*unit), fingerprint=version.fingerprint
        )
        deadline = time.monotonic() + self._load_seconds
        answer = await self._ask(
            partial(ev.ResidentWanted, unit=unit, deadline=deadline, urgent=urgent)
        )
        self._not_before[unit] = time.monotonic() + DEFER_SECONDS
        try:
            if isinstance(answer, ev.Granted):
                report.config = await self._tritons[answer.key.server].config(unit)
            elif isinstance(answer, ev.Refused) and isinstance(answer.error, LoadFailed | SetAside):
                cause = answer.error.metadata["cause"]
                report.problem = (
                    f"a server that was asked to complete its config could not: {cause}"
                )
            else:
                return
            await self._stub.ReportCompletion(report, timeout=CALL_SECONDS)
        except (TritonGone, TritonRefused) as error:
            _log.warning("config not read", version=report.name, cause=str(error))
        except grpc.aio.AioRpcError as error:
            _log.warning("completion not reported", version=report.name, cause=error.details())
        else:
            del self._not_before[unit]
