"""Python models that call others (business logic scripting): which, as far as their code says it.

The code is parsed and never run. A name counts if it is written out: in the call itself, or in
variables that are given nothing but text, one by one or by a loop over a list of texts.
"""

import ast
from collections.abc import Iterator
from typing import Final, NamedTuple

REQUEST: Final = "InferenceRequest"


class Call(NamedTuple):
    """A model that is called. `version` is 0 if the call names none."""

    model: str
    version: int


def calls(source: str) -> tuple[Call, ...]:
    """Return the models that the code names in its requests, each once, in order.

    Code that cannot be parsed names none.
    """
    if REQUEST not in source:
        return ()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    known = _Texts(tree)
    found: dict[Call, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func).rpartition(".")[2] == REQUEST:
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if "model_name" in given:
                version = _version(given.get("model_version"))
                for model in known.texts(given["model_name"]):
                    found[Call(model, version)] = None
    return tuple(found)


class _Texts:
    """The texts that the variables of a module can have; none for those given anything else."""

    def __init__(self, tree: ast.Module) -> None:
        self._by_name: dict[str, list[str]] = {}
        self._unknown: set[str] = set()
        for node in ast.walk(tree):
            for target, value in _bindings(node):
                self._bind(target, value)

    def texts(self, value: ast.expr) -> list[str]:
        """Return what `value` can be, or nothing if that cannot be told."""
        if isinstance(value, ast.Constant):
            return [value.value] if isinstance(value.value, str) else []
        name = _name(value)
        return self._by_name.get(name, []) if name not in self._unknown else []

    def _bind(self, target: ast.expr, value: ast.expr | None) -> None:
        name = _name(target)
        texts = _constants(value)
        if texts and name:
            self._by_name.setdefault(name, []).extend(texts)
            return
        for part in ast.walk(target):
            self._unknown.add(_name(part))


def _bindings(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Yield what a node gives a value to, and the value if it is known."""
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                yield target, value if isinstance(value, ast.Constant) else None
        case ast.AnnAssign(target=target, value=value) | ast.NamedExpr(target=target, value=value):
            if value is not None:
                yield target, value if isinstance(value, ast.Constant) else None
        case ast.For(target=target, iter=items) | ast.comprehension(target=target, iter=items):
            yield target, items
        case ast.AugAssign(target=target):
            yield target, None
        case ast.arg(arg=name):
            yield ast.Name(name), None
        case ast.withitem(optional_vars=ast.expr() as target):
            yield target, None


def _constants(value: ast.expr | None) -> list[str]:
    """Return the texts of a constant, or of a list of constants; empty if it has others."""
    items = value.elts if isinstance(value, ast.List | ast.Tuple | ast.Set) else [value]
    texts = [item.value for item in items if isinstance(item, ast.Constant)]
    if len(texts) < len(items) or not all(isinstance(text, str) for text in texts):
        return []
    return [text for text in texts if isinstance(text, str)]


def _version(value: ast.expr | None) -> int:
    number = value.value if isinstance(value, ast.Constant) else 0
    return number if isinstance(number, int) and number > 0 else 0


def _name(node: ast.AST) -> str:
    """Return the dotted name that an expression is, or ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = _name(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""
