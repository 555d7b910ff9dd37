"""Configs that only a server can complete: why, and what of its answer counts.

A Triton that runs with auto-completion asks a backend, or a Python model's own code, for what a
config leaves out. What a model's files tell without running them is completed in `config`.
"""

from typing import Any, Final

from google.protobuf.message import DecodeError, Message
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.registry.formats.ensembles import is_ensemble
from services.registry.formats.refusal import Unservable

# The method of a Python model that Triton asks.
METHOD: Final = "auto_complete_config"

# Backends that complete every config, even one that lists all tensors.
_ALWAYS: Final = frozenset({"vllm"})
# Backends that complete none: Triton says so, and refuses a config without tensors.
_NEVER: Final = frozenset({"pytorch"})

# What the server was given, or sets in every config. Where instances run is decided before it is
# asked, and not by the server that happens to be asked.
_NOT_TAKEN: Final = frozenset(
    {"name", "version_policy", "instance_group", "optimization", "default_model_filename"}
)
_SCHEDULING: Final = "scheduling_choice"


def incomplete(config: ModelConfig, *, asks_code: bool) -> str:
    """Return why only a server can complete a config, or "".

    `asks_code`: whether the model's Python code has METHOD.
    """
    backend = config.backend
    if is_ensemble(config) or backend in _NEVER:
        return ""
    if backend == "python":
        return f"its code has {METHOD}, which a server calls" if asks_code else ""
    if backend in _ALWAYS:
        return f"backend '{backend}' completes the config of each of its models"
    if not config.output:
        return f"its config lists no output, and a server asks backend '{backend}' for them"
    return ""


def merged(given: ModelConfig, answer: bytes) -> ModelConfig:
    """Return the config with what it leaves out taken from a server's.

    `answer` is a serialized inference.ModelConfig. Whatever `given` sets is kept as it is. Raises
    Unservable.
    """
    try:
        theirs = ModelConfig.FromString(answer)
    except DecodeError as error:
        raise Unservable(f"a server's answer is no model configuration: {error}") from None
    config = ModelConfig()
    config.CopyFrom(given)
    for name in _NOT_TAKEN:
        theirs.ClearField(name)
    scheduling = theirs.WhichOneof(_SCHEDULING)
    if scheduling is not None and config.WhichOneof(_SCHEDULING) not in (None, scheduling):
        theirs.ClearField(scheduling)
    for tensors, others in ((config.input, theirs.input), (config.output, theirs.output)):
        _add_tensors(tensors, others)
    theirs.ClearField("input")
    theirs.ClearField("output")
    _fill(config, theirs)
    return config


def _add_tensors(tensors: Any, others: Any) -> None:
    """Complete the tensors of the same name, and add the others."""
    known = {tensor.name: tensor for tensor in tensors}
    for other in others:
        if other.name in known:
            _fill(known[other.name], other)
        else:
            tensors.add().CopyFrom(other)


def _fill(ours: Message, theirs: Message) -> None:
    """Set what is unset in `ours` as it is in `theirs`, at the top alone."""
    given = {field.name for field, _ in ours.ListFields()}
    rest = type(theirs)()
    rest.CopyFrom(theirs)
    for field, _ in theirs.ListFields():
        if field.name in given:
            if hasattr(getattr(ours, field.name), "items"):
                _add_entries(getattr(ours, field.name), getattr(theirs, field.name))
            rest.ClearField(field.name)
    ours.MergeFrom(rest)


def _add_entries(ours: Any, theirs: Any) -> None:
    """Add the entries of a map of messages or texts that `ours` does not have."""
    for key in theirs.keys() - ours.keys():
        if isinstance(theirs[key], Message):
            ours[key].CopyFrom(theirs[key])
        else:
            ours[key] = theirs[key]
