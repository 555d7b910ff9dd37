"""What the fleet holds, told to the Registry, which keeps the files of that on disk."""

import asyncio
from collections.abc import Callable, Set
from typing import Any, Final

import grpc
import structlog

from services.controller.core.entities import Unit
from shoal.names import version_name
from shoal.registry.v1 import registry_service_pb2 as wire

CALL_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 2.0  # how often a change is looked for
REPEAT_SECONDS: Final = 10.0  # a Registry that was restarted has forgotten what it was told

_log = structlog.get_logger(__name__)


class Residents:
    """Reports the units that have a replica, in whatever state, as `current` returns them."""

    def __init__(self, stub: Any, current: Callable[[], Set[Unit]]) -> None:
        self._stub = stub
        self._current = current
        self._told: Set[Unit] | None = None

    async def tell(self) -> None:
        """Report what has a replica now, unless that was told already."""
        now = frozenset(self._current())
        if now == self._told:
            return
        request = wire.ReportResidentsRequest(versions=sorted(version_name(*unit) for unit in now))
        try:
            await self._stub.ReportResidents(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            # One that is away is told later. One that refuses it would refuse it again.
            away = error.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            )
            self._told = None if away else now
            if not away:
                _log.warning("residents not reported", cause=error.details())
        else:
            self._told = now

    async def run(self) -> None:
        """Report changes, for ever."""
        while True:
            self._told = None
            for _ in range(round(REPEAT_SECONDS / LOOK_SECONDS)):
                await self.tell()
                await asyncio.sleep(LOOK_SECONDS)
