"""What Triton checks in ensembles, in its words. Every function raises Unservable.

Tensors flow through an ensemble from its inputs to its outputs. Each step reads some of them and
writes others.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelEnsembling

from services.registry.formats.refusal import Unservable

ENSEMBLE: Final = "ensemble"


def is_ensemble(config: ModelConfig) -> bool:
    return bool(config.platform == ENSEMBLE or config.HasField("ensemble_scheduling"))


def check_ensemble(config: ModelConfig) -> None:
    """Check what an ensemble's own config says."""
    name = config.name
    if config.platform != ENSEMBLE:
        raise Unservable(
            f"ensemble scheduling cannot be set for model '{name}' whose platform is not {ENSEMBLE}"
        )
    if config.backend:
        raise Unservable(
            f"Ensemble model '{name}' must have platform type '{ENSEMBLE}' and empty backend type"
        )
    if not config.HasField("ensemble_scheduling"):
        raise Unservable(
            f"ensemble scheduling must be set for ensemble {name} whose platform is {ENSEMBLE}"
        )
    if config.instance_group:
        raise Unservable(f"instance group should not be specified for ensemble '{name}'")
    if config.HasField("optimization"):
        raise Unservable(f"optimization should not be specified for ensemble '{name}'")
    if config.model_warmup:
        raise Unservable(f"model_warmup can not be specified for ensemble '{name}'")
    steps = config.ensemble_scheduling.step
    if not steps:
        raise Unservable(f"must specify 'step' for ensemble '{name}'")
    for index, step in enumerate(steps):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                raise Unservable(f"must specify '{field}' in step {index} of ensemble '{name}'")
    _check_flow(config, steps)


def _check_flow(config: ModelConfig, steps: Sequence[ModelEnsembling.Step]) -> None:
    """Check that every tensor is written once, is read, and depends on the inputs alone."""
    name = config.name
    sources: dict[str, list[str]] = {}  # what each written tensor is made from
    for index, step in enumerate(steps):
        for tensor in step.output_map.values():
            if tensor in sources:
                raise Unservable(
                    f"ensemble tensor '{tensor}' can appear in an output map only once for "
                    f"ensemble '{name}' step {index}"
                )
            sources[tensor] = list(step.input_map.values())
    read = {tensor for step in steps for tensor in step.input_map.values()}
    for kind, entries in (("input", config.input), ("output", config.output)):
        for entry in entries:
            if entry.name not in read | sources.keys():
                raise Unservable(f"ensemble {kind} '{entry.name}' for ensemble {name}' is not used")
    ready = _reached({entry.name for entry in config.input}, sources)
    outputs = {entry.name for entry in config.output}
    for output in (entry.name for entry in config.output):
        if output not in ready:
            raise Unservable(
                f"output '{output}' for ensemble '{name}' is not written"
                + _unconnected(output, sources, ready)
            )
    for tensor in sorted(read | sources.keys()):
        if tensor not in outputs and not (tensor in ready and tensor in read):
            raise Unservable(f"ensemble tensor '{tensor}' is unused in ensemble '{name}'")


def _reached(inputs: set[str], sources: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the tensors that the inputs lead to."""
    ready = set(inputs)
    while more := {
        tensor for tensor, needed in sources.items() if tensor not in ready and ready >= {*needed}
    }:
        ready |= more
    return ready


def _unconnected(output: str, sources: Mapping[str, Sequence[str]], ready: set[str]) -> str:
    """Return in words the farthest tensor because of which an output is not written."""
    last, seen = output, set[str]()
    while missing := [one for one in sources.get(last, ()) if one not in ready and one not in seen]:
        last = missing[0]
        seen.add(last)
    if last == output:
        return ""
    return f": at least one of its depending tensors, '{last}', is not connected"


# --- an ensemble and its parts --------------------------------------------------------------------


class _Tensor:
    """A tensor of an ensemble, as the model that names it first has it."""

    def __init__(self, model: str, batched: bool, entry: Any, dims: Iterable[int]) -> None:
        self.model = model
        self.type = entry.data_type
        self.dims = list(dims)
        self.full = [-1, *self.dims] if batched else self.dims


def fitted(raw: bytes, parts: Sequence[bytes]) -> bytes:
    """Return an ensemble's serialized config, decoupled if one of its parts is.

    `parts` are the serialized configs of its steps' models, in order; further ones are ignored.
    """
    config = ModelConfig.FromString(raw)
    steps = config.ensemble_scheduling.step
    decoupled = check_parts(config, list(map(ModelConfig.FromString, parts[: len(steps)])))
    if config.model_transaction_policy.decoupled == decoupled:
        return raw
    config.model_transaction_policy.decoupled = decoupled
    return bytes(config.SerializeToString(deterministic=True))


def check_parts(config: ModelConfig, parts: Sequence[ModelConfig]) -> bool:
    """Check that an ensemble's steps fit their models, whose configs `parts` are in order.

    Returns whether the ensemble is decoupled, which it is if one of its parts is.
    """
    name = config.name
    tensors: dict[str, _Tensor] = {}
    for entry in (*config.input, *config.output):
        dims = entry.reshape.shape if entry.HasField("reshape") else entry.dims
        tensors.setdefault(entry.name, _Tensor(name, config.max_batch_size > 0, entry, dims))
    for step, part in zip(config.ensemble_scheduling.step, parts, strict=True):
        if 0 < part.max_batch_size < config.max_batch_size:
            raise Unservable(
                f"ensemble {name} allows maximum batch size {config.max_batch_size}, but it "
                f"contains model {step.model_name} which only allows maximum batch size to be "
                f"{part.max_batch_size}"
            )
        _check_step(name, step, part, tensors)
    return _is_decoupled(config, parts)


def _check_step(
    name: str, step: ModelEnsembling.Step, part: ModelConfig, tensors: dict[str, _Tensor]
) -> None:
    model, where = step.model_name, f"in ensemble {name}"
    inputs = {entry.name: entry for entry in part.input}
    outputs = {entry.name: entry for entry in part.output}
    for given, tensor in sorted(step.input_map.items()):
        if given not in inputs:
            raise Unservable(
                f"{where}, ensemble tensor {tensor} is mapping to non-existing input {given} in "
                f"model {model}"
            )
    for entry in part.input:
        if entry.name not in step.input_map and not entry.optional:
            raise Unservable(
                f"{where}, input {entry.name} in model {model} is not mapped to any ensemble "
                "tensors"
            )
    for given, tensor in sorted(step.output_map.items()):
        if given not in outputs:
            raise Unservable(
                f"{where}, ensemble tensor {tensor} is mapped from non-existing output {given} in "
                f"model {model}"
            )
    mapped = [
        *((tensor, inputs[given]) for given, tensor in step.input_map.items()),
        *((tensor, outputs[given]) for given, tensor in step.output_map.items()),
    ]
    for tensor, entry in mapped:
        own = _Tensor(model, part.max_batch_size > 0, entry, entry.dims)
        _check_consistent(
            tensors.setdefault(tensor, own), own, f"{where}, ensemble tensor {tensor}"
        )


def _check_consistent(one: _Tensor, other: _Tensor, what: str) -> None:
    """Check that both have one type, and shapes that match or are left open."""
    if one.type != other.type:
        raise Unservable(
            f"{what}: inconsistent data type: {DataType.Name(one.type)} is inferred from model "
            f"{one.model} while {DataType.Name(other.type)} is inferred from model {other.model}"
        )
    if not (_match(one.dims, other.dims) or _match(one.full, other.full)):
        raise Unservable(
            f"{what}: inconsistent shape: {_shown(one.full)} is inferred from model {one.model} "
            f"while {_shown(other.full)} is inferred from model {other.model}"
        )


def _match(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def _shown(dims: Sequence[int]) -> str:
    return f"[{','.join(map(str, dims))}]"


def _is_decoupled(config: ModelConfig, parts: Sequence[ModelConfig]) -> bool:
    """Check that no step waits for the replies of two decoupled steps, which need not pair up."""
    # The decoupled step that a tensor's replies are counted by, or 0.
    label = {entry.name: 0 for entry in config.input}
    for index, step, part in _in_order(config, parts):
        origins = {label[tensor] for tensor in step.input_map.values()}
        if len(origins) > 1:
            raise Unservable(
                f"in ensemble {config.name}, step of model '{step.model_name}' receives inputs "
                "originated from different decoupled models"
            )
        decoupled = part.model_transaction_policy.decoupled
        label.update(
            dict.fromkeys(step.output_map.values(), index + 1 if decoupled else origins.pop())
        )
    return any(label.values())


def _in_order(
    config: ModelConfig, parts: Sequence[ModelConfig]
) -> Iterator[tuple[int, ModelEnsembling.Step, ModelConfig]]:
    """Yield the steps, each after those whose outputs it reads, with index and model's config."""
    ready = {entry.name for entry in config.input}
    waiting = list(zip(range(len(parts)), config.ensemble_scheduling.step, parts, strict=True))
    while runnable := [one for one in waiting if ready >= {*one[1].input_map.values()}]:
        for one in runnable:
            waiting.remove(one)
            ready |= {*one[1].output_map.values()}
            yield one
