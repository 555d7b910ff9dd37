"""scikit-learn models saved by skops: arrays, and a schema that names every type."""

from collections.abc import Iterator
from typing import Any, Final

import orjson

from services.registry.formats.artifact import Artifact
from services.registry.formats.content import pickles, torch_files, zip_archive
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal

name = "sklearn-skops"
backend = ""
runs_code = ""

_SCHEMA: Final = "schema.json"
_MAX_SCHEMA: Final = 64 * 2**20  # bytes; skops writes about 30,000 for each tree of a forest
_MAX_DEPTH: Final = 200
# The libraries whose objects only hold numbers and settings.
_LIBRARIES: Final = frozenset({"sklearn", "numpy", "scipy"})
_BUILTINS: Final = frozenset(
    [
        "NoneType",
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
        "range",
        "set",
        "slice",
        "str",
        "tuple",
        "type",
    ]
)
_COLLECTIONS: Final = frozenset({"OrderedDict", "defaultdict", "Counter", "deque"})
# What loads a name as something to call.
_CALLED: Final = frozenset({"FunctionNode", "MethodNode", "OperatorFuncNode", "PartialNode"})
_MATHS: Final = ("numpy", "scipy.special", "numpy.core", "numpy._core", "scipy.special._ufuncs")
_NO_MATHS: Final = frozenset(
    [
        "fromfile",
        "fromfunction",
        "fromregex",
        "genfromtxt",
        "load",
        "loadtxt",
        "memmap",
        "save",
        "savetxt",
        "savez",
    ]
)


def detect(artifact: Artifact) -> bool:
    return bool(torch_files.with_entry(artifact, _SCHEMA))


def validate(artifact: Artifact) -> Described:
    file = torch_files.one_of(
        torch_files.with_entry(artifact, _SCHEMA), "model.skops", "skops files"
    )
    with zip_archive.opened(artifact, file) as archive:
        try:
            schema = orjson.loads(archive.read(_SCHEMA, _MAX_SCHEMA))
        except orjson.JSONDecodeError:
            raise Refusal(f"{_SCHEMA} in {file} is not JSON") from None
        if not isinstance(schema, dict) or "__loader__" not in schema:
            raise Refusal(f"{_SCHEMA} in {file} is not a schema of skops")
        unknown: dict[str, None] = {}
        for node in _nodes(schema, file):
            data = node.get("file")
            if isinstance(data, str) and data not in archive.sizes:
                raise Refusal(f"{file} is cut off: it lacks {data[:100]}")
            if said := _unknown(node):
                unknown[said] = None
    root = f"{schema.get('__module__')}.{schema.get('__class__')}"
    code = (f"{file} names the types {pickles.shown(unknown)}, which are not known to be harmless",)
    return Described(
        notes=(root[:200], f"skops {str(schema.get('_skops_version'))[:50]}"),
        file=file,
        code=code if unknown else (),
    )


def _nodes(schema: dict[str, Any], file: str) -> Iterator[dict[str, Any]]:
    """Yield every object of the schema."""
    waiting: list[tuple[Any, int]] = [(schema, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise Refusal(f"{_SCHEMA} in {file} is nested more than {_MAX_DEPTH} deep")
        if isinstance(node, dict):
            if "__loader__" in node:
                yield node
            waiting += ((one, depth + 1) for one in node.values())
        elif isinstance(node, list):
            waiting += ((one, depth + 1) for one in node)


def _unknown(node: dict[str, Any]) -> str:
    """Return the name of a node's type, unless it is known to be harmless."""
    module, cls = str(node.get("__module__", "")), str(node.get("__class__", ""))
    name = f"{module}.{cls}"[:200]
    if node.get("__loader__") in _CALLED and module != "builtins":
        content = node.get("content")
        inner = content if isinstance(content, dict) else {}
        module, cls = str(inner.get("module_path", module)), str(inner.get("function", cls))
        named = f"{module}.{cls}"[:200]
        return "" if module in _MATHS and cls not in _NO_MATHS else named
    if module == "builtins":
        return "" if cls in _BUILTINS else name
    if module == "collections":
        return "" if cls in _COLLECTIONS else name
    return "" if module.partition(".")[0] in _LIBRARIES else name
