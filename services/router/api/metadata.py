"""What one very large Triton would say about itself and its models, resident or not."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from tritonclient.grpc import service_pb2

from services.common.errors import ShoalError, VersionNotFound
from services.router.api.administration import refuse_named
from services.router.call import Answer, Call
from services.router.control import model_info
from services.router.control.model_info import ModelInfo
from services.router.control.placement_watch import PlacementWatch
from services.router.core.errors import VersionNotANumber
from services.router.core.routing.routes import Target, VersionRoute, resolve

# In Triton's names and order, each with the call that it depends on.
EXTENSIONS: Final = (
    ("classification", "ModelInfer"),
    ("sequence", "ModelInfer"),
    ("model_repository", "RepositoryModelLoad"),
    ("model_repository(unload_dependents)", "RepositoryModelUnload"),
    ("schedule_policy", "ModelInfer"),
    ("model_configuration", "ModelConfig"),
    ("system_shared_memory", "SystemSharedMemoryRegister"),
    ("cuda_shared_memory", "CudaSharedMemoryRegister"),
    ("binary_tensor_data", "ModelInfer"),
    ("parameters", "ModelInfer"),
    ("statistics", "ModelStatistics"),
    ("trace", "TraceSetting"),
    ("logging", "LogSettings"),
)


class Metadata:
    """Answers the calls that read metadata. The methods take and return messages of
    inference.GRPCInferenceService.

    `name` is the server's and `version` is Shoal's. `ends` returns whether requests will soon be
    refused. `others` names the methods answered elsewhere, which decide which of Triton's
    extensions are announced."""

    def __init__(
        self,
        watch: PlacementWatch,
        info: ModelInfo,
        *,
        name: str,
        version: str,
        ends: Callable[[], bool],
        others: Iterable[str],
    ) -> None:
        self._watch = watch
        self._info = info
        self._name = name
        self._version = version
        self._ends = ends
        self._methods = {"ModelInfer", "ModelConfig", *others}

    def answers(self) -> Mapping[str, Answer]:
        """Return the answer to each method, by name."""
        return {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "RepositoryIndex": self.repository_index,
        }

    async def server_live(self, request: Any, call: Call) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any, call: Call) -> Any:
        ready = self._watch.synchronized.is_set() and not self._ends()
        return service_pb2.ServerReadyResponse(ready=ready)

    async def server_metadata(self, request: Any, call: Call) -> Any:
        extensions = [name for name, method in EXTENSIONS if method in self._methods]
        return service_pb2.ServerMetadataResponse(
            name=self._name, version=self._version, extensions=extensions
        )

    async def model_ready(self, request: Any, call: Call) -> Any:
        try:
            _, route = self._version_of(request.name, request.version)
        except VersionNotANumber:
            raise  # as Triton does
        except ShoalError:
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=route.servable and not self._ends())

    async def model_metadata(self, request: Any, call: Call) -> Any:
        target, route = self._version_of(request.name, request.version)
        config = await self._info.config(target, route.identity)
        versions = self._watch.table.routes[target.model].versions
        servable = sorted(number for number, entry in versions.items() if entry.servable)
        listed = [target.version] if request.version else servable
        return model_info.metadata(request.name, listed, config)

    async def model_config(self, request: Any, call: Call) -> Any:
        target, route = self._version_of(request.name, request.version)
        config = await self._info.config(target, route.identity)
        return service_pb2.ModelConfigResponse(config=config)

    async def repository_index(self, request: Any, call: Call) -> Any:
        refuse_named(request.repository_name)
        return model_info.index(self._watch.table.routes, ready_only=request.ready)

    def _version_of(self, model: str, version: str) -> tuple[Target, VersionRoute]:
        """Return the version that a name means, and its entry. If a policy splits the traffic it is
        the first arm's, since all arms share their signature."""
        routes = self._watch.table.routes
        target = resolve(routes, model, version, 0.0)
        found = routes[target.model].versions.get(target.version)
        if found is None:
            raise VersionNotFound(
                model=target.model, version=target.version, versions="it is not registered any more"
            )
        return target, found
