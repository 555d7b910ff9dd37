"""Hugging Face transformers: config.json, and weights in safetensors or pickles."""

from pathlib import PurePosixPath
from typing import Any, Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content import pickles, safetensors, torch_files, zip_archive
from services.registry.formats.content.json_file import read_object
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal

name = "transformers"
backend = ""
runs_code = ""

_CONFIG: Final = "config.json"
_SAFE: Final = "model.safetensors"
_PICKLED: Final = "pytorch_model.bin"
_MAX_SHARDS: Final = 2000
_MAX_LABELS: Final = 100_000


def detect(artifact: Artifact) -> bool:
    head = artifact.read(_CONFIG, 2**20)
    return b'"model_type"' in head or b'"architectures"' in head


def validate(artifact: Artifact) -> Described:
    config = read_object(artifact, _CONFIG)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise Refusal(f"{_CONFIG} does not say its model_type")
    weights, pickled = _weights(artifact)
    named: set[str] = set()
    code = list(_own_code(config))
    for file in weights:
        if pickled:
            code.append(_check_pickle(artifact, file))
        else:
            named |= safetensors.check(artifact, file)
    _check_index(artifact, f"{_PICKLED if pickled else _SAFE}.index.json", named, pickled)
    classes = config.get("architectures")
    notes = [f"model type {kind[:100]}"]
    if isinstance(classes, list) and classes:
        notes.append(f"architecture {str(classes[0])[:100]}")
    return Described(labels=_labels(config), notes=tuple(notes), code=tuple(code))


def _own_code(config: dict[str, Any]) -> list[str]:
    own = config.get("auto_map")
    if not own:
        return []
    named = own.values() if isinstance(own, dict) else [own]
    files = sorted({str(one).partition(".")[0][:100] for one in named})
    return [
        f"the auto_map in {_CONFIG} names Python code of its own ({', '.join(files[:5])}), which "
        "transformers runs with trust_remote_code"
    ]


def _weights(artifact: Artifact) -> tuple[list[str], bool]:
    """Return the files of weights, and whether they are pickles. Raises Refusal."""
    for file, pickled in ((_SAFE, False), (_PICKLED, True)):
        if f"{file}.index.json" in artifact.files:
            return _shards(artifact, f"{file}.index.json"), pickled
        if file in artifact.files:
            return [file], pickled
    for other in ("tf_model.h5", "flax_model.msgpack", "rust_model.ot"):
        if other in artifact.files:
            raise Refusal(f"its weights are only in {other}: save them as {_SAFE}")
    raise Refusal(f"it has {_CONFIG} and no weights: {_SAFE} is missing")


def _shards(artifact: Artifact, index: str) -> list[str]:
    where = read_object(artifact, index, 32 * 2**20).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise Refusal(f"{index} has no weight_map")
    found = sorted({str(one) for one in where.values()})
    if len(found) > _MAX_SHARDS:
        raise Refusal(f"{index} names {len(found)} files, more than {_MAX_SHARDS}")
    for one in found:
        if PurePosixPath(one).is_absolute() or ".." in PurePosixPath(one).parts:
            raise Refusal(f"{index} names a file outside the folder: {one[:200]!r}")
        if one not in artifact.files:
            raise Refusal(f"{one[:200]}, which {index} names, is missing")
    return found


def _check_index(artifact: Artifact, index: str, named: set[str], pickled: bool) -> None:
    """Check that the files have every weight that the index names."""
    if pickled or index not in artifact.files:
        return
    where = read_object(artifact, index, 32 * 2**20)["weight_map"]
    missing = sorted(set(where) - named)
    if missing:
        raise Refusal(f"{index} names {missing[0][:200]!r}, which none of its files has")


def _check_pickle(artifact: Artifact, file: str) -> str:
    """Walk a file of pickled weights; return what opening it would run. Raises Refusal."""
    head = artifact.read(file, 32)
    if head[:4] == zip_archive.MAGIC:
        with zip_archive.opened(artifact, file) as archive:
            found = torch_files.pickled(archive, f"{archive.root()}data.pkl")
    elif pickles.is_pickle(head):
        with artifact.mapped(file) as content:
            found = pickles.imports(content, file)
    else:
        raise Refusal(f"{file} is neither torch's archive nor a pickle")
    pickles.check_harmless(found, file)
    others = torch_files.others(found)
    told = f", and imports {pickles.shown(others)} beyond tensors" if others else ""
    return f"{file} holds its weights as a pickle{told}"


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    said = config.get("id2label")
    if not isinstance(said, dict) or not 0 < len(said) <= _MAX_LABELS:
        return ()
    found = [said.get(str(index)) for index in range(len(said))]
    return tuple(str(one) for one in found) if all(isinstance(x, str) for x in found) else ()
