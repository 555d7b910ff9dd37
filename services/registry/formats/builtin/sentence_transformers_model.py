"""sentence-transformers: modules.json, and a folder for each module."""

from pathlib import PurePosixPath
from typing import Any, Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.builtin import transformers_model
from services.registry.formats.content.json_file import read
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal

name = "sentence-transformers"
backend = ""
runs_code = ""

_FILE: Final = "modules.json"
_MAX_MODULES: Final = 100
_OWN: Final = "sentence_transformers."


def detect(artifact: Artifact) -> bool:
    head = artifact.read(_FILE, 2**16)
    return b'"type"' in head and b'"path"' in head


def validate(artifact: Artifact) -> Described:
    modules = read(artifact, _FILE)
    if not isinstance(modules, list) or not 0 < len(modules) <= _MAX_MODULES:
        raise Refusal(f"{_FILE} lists no modules")
    kinds: list[str] = []
    code: list[str] = []
    notes: list[str] = []
    for module in modules:
        kind, path = _module(module)
        kinds.append(kind.rpartition(".")[2])
        if not kind.startswith(_OWN):
            code.append(
                f"{_FILE} names the module {kind[:200]}, which is not sentence-transformers'"
            )
        if kinds[-1] == "Transformer":
            inner = transformers_model.validate(artifact.below(path))
            code += inner.code
            notes += inner.notes
        elif path and not any(one.startswith(f"{path}/") for one in artifact.files):
            # Modules without settings have no folder in some versions.
            notes.append(f"no folder {path[:100]}")
    return Described(notes=(f"modules {', '.join(kinds)[:500]}", *notes), code=tuple(code))


def _module(module: Any) -> tuple[str, str]:
    match module:
        case {"type": str(kind), "path": str(path)}:
            parts = PurePosixPath(path).parts
            if path.startswith("/") or ".." in parts:
                raise Refusal(f"{_FILE} names a folder outside the model's: {path[:200]!r}")
            return kind, path.strip("/")
    raise Refusal(f"{_FILE} has a module without type or path")
