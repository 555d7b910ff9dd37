"""Metadata, config and index of models as Triton's clients see them, resident or not."""

from collections.abc import Iterable
from typing import Any, Final

from tritonclient.grpc import model_config_pb2, service_pb2

from services.router.control.residents import ResidencyClient
from services.router.core.routing.routes import Routes, Target, VersionRoute
from services.router.core.routing.sequences import SequenceIds, sequence_ids, shared_ids

MOST_CONFIGS: Final = 4096


class ModelInfo:
    """Keeps the configs of versions for as long as their identity is the table's."""

    def __init__(self, controller: ResidencyClient) -> None:
        self._controller = controller
        self._configs: dict[Target, tuple[str, Any]] = {}

    async def config(self, target: Target, identity: str) -> Any:
        """Return an inference.ModelConfig. Raises what ResidencyClient.config raises, unless the
        config is known already."""
        known = self._configs.get(target)
        if known is not None and known[0] == identity:
            return known[1]
        reply = await self._controller.config(target)
        config = model_config_pb2.ModelConfig.FromString(reply.config)
        self._configs.pop(target, None)
        if len(self._configs) >= MOST_CONFIGS:
            del self._configs[next(iter(self._configs))]
        fetched = VersionRoute(config_digest=reply.config_digest, fingerprint=reply.fingerprint)
        self._configs[target] = (fetched.identity, config)
        return config

    async def sequence_ids(self, target: Target, routes: Routes) -> SequenceIds:
        """Return the ids of sequences that `target` takes, and all its parts if it is an ensemble.
        Raises what `config` raises."""
        found: list[SequenceIds] = []
        seen = {target}
        left = [target]
        while left:
            unit = left.pop()
            route = routes.get(unit.model)
            entry = route.versions.get(unit.version) if route is not None else None
            config = await self.config(unit, entry.identity if entry is not None else "")
            found.append(sequence_ids(config))
            parts = _parts(config, routes) - seen
            seen |= parts
            left.extend(parts)
        return shared_ids(found)


def _parts(config: Any, routes: Routes) -> set[Target]:
    """Return what an ensemble is made of, and nothing for other models. A part without a version
    counts with each that may be asked for."""
    found: set[Target] = set()
    for step in config.ensemble_scheduling.step:
        if step.model_version > 0:
            found.add(Target(step.model_name, step.model_version))
        elif (route := routes.get(step.model_name)) is not None:
            versions = route.versions.items()
            found |= {Target(step.model_name, number) for number, one in versions if one.servable}
    return found


def datatype(number: int) -> str:
    """Return the protocol's name for an inference.DataType of a model's config."""
    name = str(model_config_pb2.DataType.Name(number))
    return "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")


def metadata(model: str, versions: Iterable[int], config: Any) -> Any:
    """Return an inference.ModelMetadataResponse, as Triton would derive it from `config`."""
    batch = [-1] if config.max_batch_size > 0 else []
    reply = service_pb2.ModelMetadataResponse(
        name=model,
        versions=[str(version) for version in versions],
        platform=config.platform or config.backend,
    )
    for tensors, out in ((config.input, reply.inputs), (config.output, reply.outputs)):
        for tensor in tensors:
            shape = [*batch, *tensor.dims]
            out.add(name=tensor.name, datatype=datatype(tensor.data_type), shape=shape)
    return reply


def index(routes: Routes, *, ready_only: bool) -> Any:
    """Return an inference.RepositoryIndexResponse with a row for each version. READY means that it
    may be asked for; the reason says if it is not resident at present."""
    reply = service_pb2.RepositoryIndexResponse()
    for model in sorted(routes):
        for version, route in sorted(routes[model].versions.items()):
            if route.servable or not ready_only:
                reply.models.add(
                    name=model,
                    version=str(version),
                    state="READY" if route.servable else "UNAVAILABLE",
                    reason="" if route.servers else route.reason,
                )
    return reply
