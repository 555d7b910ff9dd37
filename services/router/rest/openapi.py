"""The table of routes as an OpenAPI document, and as a self-contained HTML page."""

import re
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, Final

from services.router.rest.documents import dumps
from services.router.rest.schemas import SCHEMAS
from services.router.rest.service import Pages
from services.router.rest.table import TAGS, HttpRoute

_WORD: Final = re.compile(r"{(\w+)}")
_TIMEOUT: Final = {
    "name": "x-request-timeout",
    "in": "header",
    "description": "Seconds that the caller waits for an answer. `grpc-timeout` and Envoy's "
    "`x-envoy-expected-rq-timeout-ms` are honoured too.",
    "schema": {"type": "number"},
}
_ERROR: Final = {
    "description": "What is wrong, and what to do about it.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def document(routes: Iterable[HttpRoute], version: str) -> dict[str, Any]:
    """Return the OpenAPI document. `version` is Shoal's."""
    paths: dict[str, Any] = {}
    for route in routes:
        for number, path in enumerate(route.paths):
            for method in route.methods:
                operation = _operation(route, path, method, number)
                paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shoal Router", "version": version, "summary": "Many models, one port."},
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _operation(route: HttpRoute, path: str, method: str, number: int) -> dict[str, Any]:
    several = len(route.paths) * len(route.methods) > 1
    words = _WORD.findall(path)
    parameters: list[dict[str, Any]] = [
        {"name": word, "in": "path", "required": True, "schema": {"type": "string"}}
        for word in words
    ]
    operation: dict[str, Any] = {
        "operationId": route.name + (f"_{method.lower()}_{number}" if several else ""),
        "tags": [route.tag],
        "summary": route.summary,
        "parameters": [*parameters, _TIMEOUT],
        "responses": {"200": _response(route), "default": _ERROR},
    }
    if route.takes and method == "POST":
        content = {"application/json": {"schema": _ref(route.takes)}}
        if route.takes == "InferRequest":
            content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"content": content}
    return operation


def _response(route: HttpRoute) -> dict[str, Any]:
    if not route.gives:
        return {"description": "Done."}
    if "/" in route.gives:
        return {"description": "Text.", "content": {route.gives: {"schema": {"type": "string"}}}}
    kind = "text/event-stream" if route.events else "application/json"
    content: dict[str, Any] = {kind: {"schema": _ref(route.gives)}}
    if route.gives == "InferResponse":
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {"description": "The answer.", "content": content}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def pages(routes: Iterable[HttpRoute], version: str) -> Pages:
    """Return the document and the page that shows it."""
    listed = tuple(routes)
    return Pages(dumps(document(listed, version)), "".join(_page(listed, version)).encode())


_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
h2 { margin-top: 2.5rem } code, pre { font: 13px/1.4 ui-monospace, monospace }
td { padding: .3rem .8rem .3rem 0; vertical-align: top } td:first-child { white-space: nowrap }
b { display: inline-block; min-width: 3.2rem } pre { background: #8881; padding: .6rem }
:root { color-scheme: light dark }
"""


def _page(routes: tuple[HttpRoute, ...], version: str) -> Iterator[str]:
    yield (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Shoal Router</title>"
        f"<style>{_STYLE}</style><h1>Shoal Router {escape(version)}</h1>"
        '<p>For programs: <a href="/openapi.json">openapi.json</a>.</p>'
    )
    used: dict[str, None] = {}
    for tag, text in TAGS.items():
        yield f"<h2>{escape(tag)}</h2><p>{escape(text)}</p><table>"
        for route in routes:
            if route.tag == tag:
                yield _row(route)
                used.update(dict.fromkeys((route.takes, route.gives)))
        yield "</table>"
    yield "<h2>Bodies</h2>"
    for name in used:
        if name in SCHEMAS:
            text = escape("\n".join(_lines(SCHEMAS[name])))
            yield f"<h3 id={name}><code>{name}</code></h3><pre>{text}</pre>"
    yield "</html>"


def _row(route: HttpRoute) -> str:
    lines = (
        f"<b>{method}</b> <code>{escape(path)}</code>"
        for path in route.paths
        for method in route.methods
    )
    bodies = [
        f'{word} <a href="#{name}"><code>{name}</code></a>'
        for word, name in (("takes", route.takes), ("gives", route.gives))
        if name in SCHEMAS
    ]
    return (
        f"<tr><td>{'<br>'.join(lines)}<td>{escape(route.summary)}"
        f"{'<br>' if bodies else ''}{', '.join(bodies)}"
    )


def _lines(schema: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield a schema in the form of an example."""
    if schema.get("type") == "array" and "items" in schema:
        yield f"{indent}["
        yield from _lines(schema["items"], indent + "  ")
        yield f"{indent}]"
    elif "properties" in schema:
        yield f"{indent}{{"
        needed = schema.get("required", ())
        for name, inner in schema["properties"].items():
            mark = "" if name in needed else "  (optional)"
            first, *rest = _lines(inner, indent + "  ")
            yield f'{indent}  "{name}": {first.strip()}{mark if not rest else ""}'
            yield from rest
        yield f"{indent}}}"
    elif isinstance(schema.get("additionalProperties"), dict):
        yield f"{indent}{{name: {' '.join(_lines(schema['additionalProperties'])).strip()}}}"
    else:
        kind = schema.get("type", "value")
        yield f"{indent}{' | '.join(kind) if isinstance(kind, list) else kind}"
