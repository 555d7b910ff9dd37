"""Models that others call: what Routers hear from the servers becomes a part of the caller."""

import asyncio
from typing import Any, Final

import grpc
import structlog

from services.controller.core.entities import Unit
from services.controller.core.view import FleetView
from services.controller.registry.catalogue import ANSWERABLE, Catalogue
from services.controller.registry.watch import RegistryWatch
from shoal.names import model_name, version_name
from shoal.registry.v1 import registry_service_pb2 as wire

CALL_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


class CalledModels:
    """Reports to the Registry which models a unit was seen to call.

    `registry`: the Registry's stub. `watch` is None where there is no Registry: then nothing is
    learned.
    """

    def __init__(
        self, registry: Any, watch: RegistryWatch | None, catalogue: Catalogue, view: FleetView
    ) -> None:
        self._registry = registry
        self._watch = watch
        self._catalogue = catalogue
        self._view = view
        self._lock = asyncio.Lock()

    async def learn(self, caller: Unit, model: str) -> None:
        """Make `model` a part of `caller`, and return once the engine knows.

        Nothing is learned that is known, that could never be beside the caller, or that cannot be
        served: then the caller goes on without it, and its requests are answered as its server
        answers them.
        """
        async with self._lock:
            if self._watch is None or not self._may_learn(caller, model):
                return
            request = wire.ReportCallsRequest(
                name=version_name(*caller), models=[model_name(model)]
            )
            try:
                reply = await self._registry.ReportCalls(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                _log.warning(
                    "a call cannot be learned",
                    caller=str(caller),
                    called=model,
                    cause=error.details(),
                )
                return
            requires = list(reply.version.requires)
            if await self._watch.until(lambda: self._requires(caller, requires), CALL_SECONDS):
                _log.info("a call was learned", caller=str(caller), called=model)
            else:
                _log.warning("a call was learned late", caller=str(caller), called=model)

    def _may_learn(self, caller: Unit, model: str) -> bool:
        version, entry = self._catalogue.version(caller), self._catalogue.entries.get(model)
        if version is None or version.state not in ANSWERABLE or entry is None:
            return False
        part = Unit(model, entry.model.default_version)
        known = any(one.model == model for one in self._view.parts_of(caller))
        return not known and self._view.could_require(caller, part)

    def _requires(self, caller: Unit, requires: list[str]) -> bool:
        version = self._catalogue.version(caller)
        return version is None or list(version.requires) == requires
