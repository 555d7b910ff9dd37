"""Triton's Python models: code, with a class TritonPythonModel."""

import ast
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal

name = "python"
backend = "python"
runs_code = "model.py is Python code, which runs in the server"

FILE: Final = "model.py"
_CLASS: Final = "TritonPythonModel"
_MAX_CODE: Final = 2**20  # bytes


def detect(artifact: Artifact) -> bool:
    return _CLASS.encode() in artifact.read(FILE, _MAX_CODE)


def validate(artifact: Artifact) -> Described:
    try:
        tree = ast.parse(artifact.text(FILE, _MAX_CODE))
    except SyntaxError as error:
        raise Refusal(f"{FILE} is not Python: line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):
        raise Refusal(f"{FILE} is not Python") from None
    model = next(
        (one for one in ast.walk(tree) if isinstance(one, ast.ClassDef) and one.name == _CLASS),
        None,
    )
    if model is None and not _imported(tree):
        raise Refusal(f"{FILE} has no class {_CLASS}")
    methods = (
        {one.name for one in model.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
        if model
        else set()
    )
    if model and not model.bases and "execute" not in methods:
        raise Refusal(f"the class {_CLASS} in {FILE} has no method execute")
    return Described(file=FILE)


def _imported(tree: ast.Module) -> bool:
    """Return whether the class comes from another module, or is assigned."""
    return any(
        (isinstance(node, ast.alias) and {node.name, node.asname} & {_CLASS, "*"})
        or (isinstance(node, ast.Name) and node.id == _CLASS and isinstance(node.ctx, ast.Store))
        for node in ast.walk(tree)
    )
