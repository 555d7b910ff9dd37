"""The files that versions come from, looked at again by the Registry before they are loaded.

A server hangs in the load of a version whose files have gone, and every model on it is lost with
it. And files that have changed are another content, which must not answer beside the registered
one. While the Registry is not heard from, versions are loaded as they were registered.
"""

from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog

from services.controller.core.entities import Unit
from services.controller.registry.catalogue import Catalogue
from services.controller.registry.residents import Residents
from services.controller.registry.watch import RegistryWatch
from shoal.names import model_name, version_name
from shoal.registry.v1 import registry_service_pb2 as wire

CHECK_SECONDS: Final = 30.0
REFRESH_SECONDS: Final = 60.0
# The Registry's answer and its catalogue come by different ways, milliseconds apart.
CATALOGUE_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


class Sources:
    """Asks the Registry about files, and waits until the catalogue has what it answers."""

    def __init__(
        self,
        stub: Any,
        catalogue: Catalogue,
        watch: RegistryWatch,
        residents: Residents | None = None,
    ) -> None:
        self._stub = stub
        self._residents = residents
        self._catalogue = catalogue
        self._watch = watch

    async def problem(self, unit: Unit) -> str:
        """Return why the unit must not be loaded as it is registered, or ""."""
        if not self._watch.connected:
            return ""
        registered = self._fingerprint(unit)
        if self._residents is not None:  # files of what is gone make room for those of the unit
            await self._residents.tell()
        request = wire.CheckModelVersionRequest(name=version_name(*unit))
        try:
            reply = await self._stub.CheckModelVersion(request, timeout=CHECK_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"the Registry could not read its files within {CHECK_SECONDS:.0f} s"
            _log.warning("files not checked", version=request.name, cause=error.details())
            return ""
        found = reply.version.fingerprint
        if reply.problem or found == registered:
            return str(reply.problem)
        await self._follow(lambda: self._fingerprint(unit) == found)
        return "its files have changed since it was registered"

    async def refresh(self, model: str) -> str:
        """Have a model's folders read again, and wait until the catalogue knows what was found.

        Returns why the model cannot be loaded from there, or "".
        """
        request = wire.RefreshModelRequest(name=model_name(model))
        try:
            reply = await self._stub.RefreshModel(request, timeout=REFRESH_SECONDS)
        except grpc.aio.AioRpcError as error:
            _log.warning("files not read again", model=model, cause=error.details())
            return ""
        entry = reply.entry if reply.HasField("entry") else None
        await self._follow(lambda: self._catalogue.entries.get(model) == entry)
        sources = {version.source for version in entry.versions} if entry is not None else None
        return "; ".join(
            f"{problem.path}: {problem.reason}"
            for problem in reply.problems
            if sources is None or problem.path in sources
        )

    def _fingerprint(self, unit: Unit) -> str:
        version = self._catalogue.version(unit)
        return version.fingerprint if version is not None else ""

    async def _follow(self, is_known: Callable[[], bool]) -> None:
        """Wait until the catalogue is as the Registry has answered."""
        if not await self._watch.until(is_known, CATALOGUE_SECONDS):
            _log.warning("the catalogue does not follow what the Registry has answered")
