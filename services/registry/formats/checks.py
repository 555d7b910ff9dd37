"""What Triton checks in a config before it loads a model, in its order and its words.

Triton tells whoever asked for the load only "failed to poll from model repository", and the reason
only to its log. Every function raises Unservable.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import (
    BatchInput,
    BatchOutput,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelQueuePolicy,
)

from services.registry.formats.refusal import Unservable

# Instances of a model on one server. Each may be a process with a copy of the weights.
MAX_INSTANCES: Final = 1000

# The backends whose configs must also name one of their platforms.
_PLATFORMS: Final[Mapping[str, tuple[str, ...]]] = {
    "tensorflow": ("tensorflow_graphdef", "tensorflow_savedmodel"),
    "tensorrt": ("tensorrt_plan",),
    "onnxruntime": ("onnxruntime_onnx",),
    "pytorch": ("pytorch_libtorch",),
}
_TENSORRT: Final = "tensorrt_plan"
_VARIABLE: Final = "or -1 to indicate a variable-size dimension"


def check_config(config: ModelConfig) -> None:
    """Check everything that needs neither the model's files nor other models."""
    _check_platform(config)
    if config.max_batch_size < 0:
        raise Unservable("'max_batch_size' must be non-negative value")
    if config.HasField("dynamic_batching"):
        _check_dynamic_batching(config.dynamic_batching, config.max_batch_size)
    _check_response_cache(config)
    _check_agents(config)
    for kind, entries in (("input", config.input), ("output", config.output)):
        for entry in entries:
            _check_tensor(entry, kind, config)
    _check_batch_inputs(config)
    _check_batch_outputs(config)
    _check_instances(config)


def check_sizes(dims: Iterable[int], what: str) -> None:
    """Check that every dimension is positive or -1."""
    if any(dim < 1 and dim != -1 for dim in dims):
        raise Unservable(f"{what} must be integer >= 1, {_VARIABLE}")


def _check_platform(config: ModelConfig) -> None:
    platforms = _PLATFORMS.get(config.backend)
    if platforms and config.platform not in platforms:
        raise Unservable(
            f"unexpected 'platform' and 'backend' pair, got:{config.platform}, {config.backend}"
        )


# --- batching -------------------------------------------------------------------------------------


def check_preferred_sizes(sizes: Iterable[int], most: int, what: str, limit: str) -> None:
    """Check that preferred batch sizes are positive and at most `most`."""
    for size in sizes:
        if size <= 0:
            raise Unservable(f"{what} must be positive")
        if size > most:
            raise Unservable(f"{what} must be <= {limit}")


def _check_dynamic_batching(batching: ModelDynamicBatching, most: int) -> None:
    what = "dynamic batching preferred size"
    check_preferred_sizes(batching.preferred_batch_size, most, what, "max batch size")
    levels = batching.priority_levels
    policies = batching.priority_queue_policy
    if levels and not 1 <= batching.default_priority_level <= levels:
        raise Unservable(f"default priority level must be in range [1, {levels}]")
    if levels and not all(1 <= level <= levels for level in policies):
        raise Unservable(f"priority queue policy must have priority level in range [1, {levels}]")
    if not batching.preserve_ordering:
        return
    if levels > 1:
        raise Unservable("Only one priority level is allowed when 'preserve_ordering' is true")
    if any(map(_delays, (batching.default_queue_policy, *policies.values()))):
        raise Unservable(
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true"
        )


def _delays(policy: ModelQueuePolicy) -> bool:
    return bool(
        policy.default_timeout_microseconds and policy.timeout_action == ModelQueuePolicy.DELAY
    )


def _check_response_cache(config: ModelConfig) -> None:
    if not config.response_cache.enable:
        return
    reason = f"Response Cache does not currently support model {config.name} with"
    if config.HasField("sequence_batching"):
        raise Unservable(
            f"{reason} sequence batching scheduler. Please disable the response cache."
        )
    if config.model_transaction_policy.decoupled:
        raise Unservable(
            f"{reason} 'decoupled' transaction policy. Please disable the response cache."
        )


def _check_agents(config: ModelConfig) -> None:
    """Check that there is an agent, because Triton crashes on an empty list."""
    if not config.HasField("model_repository_agents"):
        return
    agents = config.model_repository_agents.agents
    if not agents or not all(agent.name for agent in agents):
        raise Unservable("model_repository_agents names no agent: name one, or remove it")


# --- tensors --------------------------------------------------------------------------------------


def _check_tensor(entry: Any, kind: str, config: ModelConfig) -> None:
    """Check a ModelInput or a ModelOutput."""
    if not entry.name:
        raise Unservable(f"model {kind} must specify 'name'")
    what = f"model {kind} '{entry.name}'"
    if entry.data_type == model_config_pb2.TYPE_INVALID:
        raise Unservable(f"{what} must specify 'data_type'")
    if not entry.dims:
        raise Unservable(f"{what} must specify 'dims'")
    if entry.HasField("reshape") and not entry.reshape.shape and not config.max_batch_size:
        raise Unservable(
            f"{what} cannot have empty reshape for non-batching model as scalar tensors are not "
            "supported"
        )
    check_sizes(entry.dims, f"{what} dimension")
    if entry.HasField("reshape"):
        check_sizes(entry.reshape.shape, f"{what} reshape dimensions")
        _check_reshape(tuple(entry.dims), tuple(entry.reshape.shape), what)
    if kind == "input" and entry.format != ModelInput.FORMAT_NONE and len(entry.dims) != 3:
        raise Unservable("model input NHWC/NCHW require 3 dims")
    if entry.is_shape_tensor and config.platform != _TENSORRT:
        raise Unservable("shape tensors are only supported for TensorRT platform")
    if entry.is_non_linear_format_io:
        if config.platform != _TENSORRT:
            raise Unservable("Non-linear IO format is only supported for the TensorRT platform")
        if len(entry.dims) != 3:
            raise Unservable(f"Non-linear IO format {kind} requires 3 dims")


def _check_reshape(dims: tuple[int, ...], shape: tuple[int, ...], what: str) -> None:
    """Check that both have the same elements, also on each side of a variable dimension.

    So [2, 4, -1, 6] may become [8, -1, 1, 6].
    """
    before, after = _element_counts(dims), _element_counts(shape)
    variable = len(before) > 1, len(after) > 1
    if all(variable) and len(before) != len(after):
        raise Unservable(
            f"{what} has different number of variable-size dimensions for dims and reshape"
        )
    if before != after:
        raise Unservable(f"{what} has different size for dims and reshape")


def _element_counts(dims: tuple[int, ...]) -> list[int]:
    """Return the number of elements of each run of fixed dimensions between variable ones."""
    counts = [1]
    for dim in dims:
        if dim == -1:
            counts.append(1)
        else:
            counts[-1] *= dim
    return counts


def _check_batch_inputs(config: ModelConfig) -> None:
    known = {entry.name for entry in config.input}
    for given in config.batch_input:
        _check_source(given, BatchInput.Kind.Name, "batch input")
        if given.data_type not in (model_config_pb2.TYPE_INT32, model_config_pb2.TYPE_FP32):
            raise Unservable("batch input data type must be TYPE_INT32 or TYPE_FP32")
        _check_known(given.source_input, known)


def _check_batch_outputs(config: ModelConfig) -> None:
    inputs = {entry.name for entry in config.input}
    outputs = {entry.name for entry in config.output}
    for given in config.batch_output:
        _check_source(given, BatchOutput.Kind.Name, "batch output")
        _check_known(given.source_input, inputs)
        seen: set[str] = set()
        for target in given.target_name:
            if target not in outputs:
                raise Unservable(f"unknown target output name '{target}'")
            if target in seen:
                raise Unservable(f"target output name '{target}' can only be specified once")
            seen.add(target)


def _check_source(given: Any, name: Callable[[int], str], what: str) -> None:
    """Check that there is one source input, as every kind expects."""
    try:
        kind = name(given.kind)
    except ValueError:
        raise Unservable(f"unknown {what} kind '{given.kind}'") from None
    if len(given.source_input) != 1:
        raise Unservable(
            f"{what} kind '{kind}' expects 1 source input, got {len(given.source_input)}"
        )


def _check_known(sources: Iterable[str], known: set[str]) -> None:
    for source in sources:
        if source not in known:
            raise Unservable(f"unknown source input name '{source}'")


# --- instances ------------------------------------------------------------------------------------


def _check_instances(config: ModelConfig) -> None:
    groups = config.instance_group
    for index, group in enumerate(groups):
        what = f"instance group {group.name or f'{config.name}_{index}'} of model {config.name}"
        _check_group(group, what, config)
    if groups and all(group.passive for group in groups):
        raise Unservable(
            "every instance_group is passive, so no instance would take a request: remove "
            "'passive' from one"
        )
    # A group has an instance on each of its GPUs.
    wanted = sum(max(group.count, 1) * max(len(group.gpus), 1) for group in groups)
    if wanted > MAX_INSTANCES:
        raise Unservable(
            f"instance_group asks for {wanted} instances, and at most {MAX_INSTANCES} are allowed"
        )


def _check_group(group: ModelInstanceGroup, what: str, config: ModelConfig) -> None:
    kind = ModelInstanceGroup.Kind.Name(group.kind)
    if group.gpus and kind in ("KIND_CPU", "KIND_MODEL"):
        raise Unservable(f"{what} has kind {kind} but specifies one or more GPUs")
    for gpu in group.gpus:
        if gpu < 0:
            raise Unservable(f"{what} specifies invalid or unsupported gpu id {gpu}")
    if group.profile and config.platform != _TENSORRT:
        raise Unservable(
            f"{what} and platform {config.platform}specifies profile field which is only "
            "supported for TensorRT models"
        )
    for profile in group.profile:
        if not (profile.isascii() and profile.isdigit()):
            raise Unservable(
                f"{what} and platform {config.platform} specifies invalid profile {profile}. The "
                "field should contain the string representation of a non-negative integer."
            )
