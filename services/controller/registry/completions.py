"""Versions whose configs are to be completed by a server: those that callers ask for come first."""

import time
from typing import Any, Final

import grpc
import structlog

from services.controller.core.entities import Unit
from services.controller.core.errors import NotCompleted
from services.controller.registry.catalogue import WAITING, Catalogue
from services.controller.registry.watch import RegistryWatch
from shoal.names import version_name
from shoal.registry.v1 import registry_service_pb2 as wire

CALL_SECONDS: Final = 5.0
ANSWER_MARGIN: Final = 0.1  # seconds in which to tell the caller why, before its deadline

_log = structlog.get_logger(__name__)


async def complete(unit: Unit, deadline: float) -> None:
    """Wait for nothing: every config is complete."""


class Completions:
    """Asks the Registry for a completion, and waits until the catalogue has it."""

    def __init__(self, stub: Any, catalogue: Catalogue, watch: RegistryWatch) -> None:
        self._stub = stub
        self._catalogue = catalogue
        self._watch = watch

    async def awaited(self, unit: Unit, deadline: float) -> None:
        """Return once the unit does not wait any more, or is not registered.

        `deadline`: in seconds of the monotonic clock. Raises NotCompleted.
        """
        if not self._reason(unit):
            return
        request = wire.RequestCompletionRequest(name=version_name(*unit))
        try:
            await self._stub.RequestCompletion(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            _log.warning("completion not requested", version=request.name, cause=error.details())
        seconds = max(0.0, deadline - ANSWER_MARGIN - time.monotonic())
        await self._watch.until(lambda: not self._reason(unit), seconds)
        if reason := self._reason(unit):
            raise NotCompleted(model=unit.model, version=unit.version, problem=reason)

    def _reason(self, unit: Unit) -> str:
        version = self._catalogue.version(unit)
        waits = version is not None and version.state == WAITING
        return version.waiting_reason if version is not None and waits else ""
