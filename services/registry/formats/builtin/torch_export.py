"""torch.export: an archive (.pt2) with a graph in JSON, and weights beside it."""

from typing import Any, Final

import orjson

from services.registry.formats.artifact import Artifact
from services.registry.formats.content import torch_files, zip_archive
from services.registry.formats.content.zip_archive import Archive
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal
from services.registry.formats.tensor import Tensor

name = "torch-export"
backend = ""
runs_code = ""

_MAX_GRAPH: Final = 16 * 2**20  # bytes
_MODEL: Final = "models/model.json"
_OLD: Final = "serialized_exported_program.json"
_MAX_ARCHIVE: Final = 0

# torch's numbers of types.
_TYPES: Final = {
    1: "TYPE_UINT8",
    2: "TYPE_INT8",
    3: "TYPE_INT16",
    4: "TYPE_INT32",
    5: "TYPE_INT64",
    6: "TYPE_FP16",
    7: "TYPE_FP32",
    8: "TYPE_FP64",
    12: "TYPE_BOOL",
    13: "TYPE_BF16",
    28: "TYPE_UINT16",
}


def detect(artifact: Artifact) -> bool:
    return bool(_found(artifact))


def validate(artifact: Artifact) -> Described:
    file = torch_files.one_of(_found(artifact), "model.pt2", "exported programs")
    with zip_archive.opened(artifact, file) as archive:
        root = archive.root()
        if f"{root}{_OLD}" in archive.sizes:
            raise Refusal(
                f"{file} was saved by torch.export before torch 2.8, in a form without promises: "
                "save it again with a newer torch"
            )
        if (number := torch_files.version(archive, f"{root}archive_version")) > _MAX_ARCHIVE:
            raise Refusal(f"{file} was saved by a newer torch, in version {number} of its form")
        if any(entry.startswith(f"{root}data/aotinductor/") for entry in archive.sizes):
            raise Refusal(
                f"{file} holds compiled libraries (AOTInductor), which would run as they are: "
                "save the exported program instead"
            )
        if f"{root}{_MODEL}" not in archive.sizes:
            raise Refusal(f"{file} has no {_MODEL}: it is cut off, or holds several models")
        program = _json(archive, f"{root}{_MODEL}")
        _check_weights(archive, root)
        try:
            inputs, outputs = _tensors(program)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
            raise Refusal(f"{_MODEL} in {file} does not say what the model takes") from None
        code = tuple(
            f"{entry} in {file} is a pickle that imports {', '.join(torch_files.others(found))}"
            for entry in archive.sizes
            if entry.endswith(".pt")
            and not torch_files.tensors_only(found := torch_files.nested(archive, entry))
        )
        torch = program.get("torch_version")
    tensors = (*inputs, *outputs)
    return Described(
        inputs=inputs,
        outputs=outputs,
        batched=bool(tensors) and all(tensor.shape[:1] == (-1,) for tensor in tensors),
        notes=(f"exported by torch {torch}",) if isinstance(torch, str) else (),
        file=file,
        code=code,
    )


def _found(artifact: Artifact) -> list[str]:
    new = torch_files.with_entry(artifact, "archive_format", "archive_version")
    return [*new, *torch_files.with_entry(artifact, _OLD)]


def _json(archive: Archive, entry: str) -> dict[str, Any]:
    try:
        found = orjson.loads(archive.read(entry, _MAX_GRAPH))
    except orjson.JSONDecodeError:
        raise Refusal(f"{entry} in {archive.name} is not JSON") from None
    if not isinstance(found, dict):
        raise Refusal(f"{entry} in {archive.name} is not an object")
    return found


def _check_weights(archive: Archive, root: str) -> None:
    for kind in ("weights/model_weights", "constants/model_constants"):
        entry = f"{root}data/{kind}_config.json"
        if entry not in archive.sizes:
            continue
        folder = entry.rpartition("/")[0]
        config = _json(archive, entry).get("config")
        for said in config.values() if isinstance(config, dict) else ():
            path = said.get("path_name") if isinstance(said, dict) else None
            if not isinstance(path, str) or f"{folder}/{path}" not in archive.sizes:
                raise Refusal(f"{archive.name} lacks the weights {str(path)[:100]!r}")


def _tensors(program: dict[str, Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return inputs and outputs. Raises all that wrong JSON can raise."""
    values = program["graph_module"]["graph"]["tensor_values"]
    signature = program["graph_module"]["signature"]
    return (
        tuple(
            _tensor(one, "user_input", values)
            for one in signature["input_specs"]
            if "user_input" in one
        ),
        tuple(
            _tensor(one, "user_output", values)
            for one in signature["output_specs"]
            if "user_output" in one
        ),
    )


def _tensor(spec: dict[str, Any], key: str, values: dict[str, Any]) -> Tensor:
    label = spec[key]["arg"]["as_tensor"]["name"]
    said = values[label]
    if said["dtype"] not in _TYPES:
        raise Refusal(f"{str(label)[:100]!r} has elements of a type that Triton does not support")
    shape = tuple(int(size["as_int"]) if "as_int" in size else -1 for size in said["sizes"])
    return Tensor(str(label), _TYPES[said["dtype"]], shape)
