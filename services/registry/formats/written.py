"""A complete config.pbtxt from what validation found out; what its user wrote is kept."""

from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.registry.formats.config import BACKENDS, DEFAULT_MAX_BATCH_SIZE, fill_tensors
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal
from services.registry.formats.tensor import Tensor

LABELS_FILE: Final = "labels.txt"


def write_config(
    given: ModelConfig, backend: str, described: Described, kind: str
) -> tuple[ModelConfig, str]:
    """Return the config of a model that `backend` serves, and the text of its file of labels or "".

    `kind` is the instance kind if `given` has no instance_group. Raises Refusal if tensors in
    `given` differ from the model's.
    """
    config = ModelConfig()
    config.CopyFrom(given)
    if backend != "openvino":  # its tensors have several names each
        _check_tensors(config, described)
    _set_backend(config, backend, described.file)
    said_nothing = not (config.input or config.output or config.max_batch_size)
    if said_nothing and described.batched:
        config.max_batch_size = DEFAULT_MAX_BATCH_SIZE
        if config.WhichOneof("scheduling_choice") is None:
            config.dynamic_batching.SetInParent()
    batched = config.max_batch_size > 0
    if not config.input:
        fill_tensors(config.input, described.inputs, batched=batched)
    if not config.output:
        fill_tensors(config.output, described.outputs, batched=batched)
    if not config.output and backend in _WITHOUT_TENSORS:
        raise Refusal(
            f"{described.file or 'the model'} does not record the names and types of its tensors: "
            "list its inputs and outputs in a config.pbtxt"
        )
    if not config.instance_group and backend not in ("ensemble", "openvino"):
        config.instance_group.add(
            kind=model_config_pb2.ModelInstanceGroup.Kind.Value(kind), count=1
        )
    return config, _set_labels(config, described.labels)


def config_pbtxt(config: ModelConfig) -> str:
    """Return the text of a config.pbtxt."""
    return str(text_format.MessageToString(config))


# Backends of formats that do not say what the model takes.
_WITHOUT_TENSORS: Final = frozenset({"pytorch"})


def _set_backend(config: ModelConfig, backend: str, file: str) -> None:
    if backend == "ensemble":
        config.platform = config.platform or backend
        return
    rows = [row for row in BACKENDS if row[0] == backend]
    platform, usual = (rows[0][1], rows[0][2]) if rows else ("", "")
    if not config.backend and not config.platform:
        config.backend, config.platform = backend, platform
    if file and file != usual and not config.default_model_filename:
        config.default_model_filename = file


def _set_labels(config: ModelConfig, labels: tuple[str, ...]) -> str:
    """Name a file of labels for the one output that has a value for each; return its text."""
    outputs = [one for one in config.output if list(one.dims)[-1:] == [len(labels)]]
    if not labels or len(outputs) != 1 or any(one.label_filename for one in config.output):
        return ""
    outputs[0].label_filename = LABELS_FILE
    return "".join(f"{' '.join(label.split())}\n" for label in labels)


# --- differences ----------------------------------------------------------------------------------


def _check_tensors(config: ModelConfig, described: Described) -> None:
    """Check what the user wrote against what the model says, if it says anything."""
    scattered = {name for one in config.batch_output for name in one.target_name}
    for kind, entries, tensors in (
        ("input", config.input, (*described.inputs, *described.defaults)),
        ("output", config.output, described.outputs),
    ):
        if not tensors:
            continue
        known = {tensor.name: tensor for tensor in tensors}
        for entry in entries:
            if entry.name not in known:
                there = ", ".join(sorted(known)[:10])
                raise Refusal(
                    f"config.pbtxt lists the {kind} {entry.name!r}, and the model has only {there}"
                )
            ragged = kind == "input" and entry.allow_ragged_batch
            _check_tensor(
                entry,
                known[entry.name],
                kind,
                batched=config.max_batch_size > 0,
                unlike=ragged or entry.name in scattered,
            )
    if config.input and not config.HasField("sequence_batching"):
        listed = {entry.name for entry in config.input} | {
            name for batch_input in config.batch_input for name in batch_input.target_name
        }
        left = [tensor.name for tensor in described.inputs if tensor.name not in listed]
        if left:
            raise Refusal(f"config.pbtxt leaves out the model's input {left[0]!r}")


def _check_tensor(entry: Any, tensor: Tensor, kind: str, *, batched: bool, unlike: bool) -> None:
    """Check one tensor; `unlike` means that the config does not tell the shape in the model."""
    what = f"the {kind} {entry.name!r}"
    wanted = model_config_pb2.DataType.Value(tensor.data_type)
    if entry.data_type not in (wanted, model_config_pb2.TYPE_INVALID):
        said = model_config_pb2.DataType.Name(entry.data_type)
        raise Refusal(f"config.pbtxt says that {what} is {said}, the model {tensor.data_type}")
    if not entry.dims or unlike:
        return
    if batched and tensor.shape[:1] != (-1,):
        raise Refusal(f"max_batch_size is not 0, but the first dimension of {what} is fixed")
    shape = tensor.shape[1:] if batched else tensor.shape
    dims = tuple(entry.reshape.shape if entry.HasField("reshape") else entry.dims)
    fits = len(dims) == len(shape) and all(
        dim == size or -1 in (dim, size) for dim, size in zip(dims, shape, strict=True)
    )
    if not fits:
        raise Refusal(
            f"config.pbtxt says that {what} has the shape {list(dims)}, the model {list(shape)}"
        )
