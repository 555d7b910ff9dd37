"""No input to any route of the HTTP port fails inside the Router.

Bodies are drawn from the schemas that the OpenAPI document has for them, with parts exchanged for
anything else. The answers behind the port are scripted."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tritonclient.grpc import model_config_pb2, service_pb2

from services.common.caller import CallerPolicy
from services.router.call import Call
from services.router.control.placement_watch import PlacementWatch
from services.router.core.rest.infer import SIZES
from services.router.core.routing.routes import Route, VersionRoute
from services.router.core.routing.table import Table
from services.router.rest.app import app
from services.router.rest.openapi import document, pages
from services.router.rest.schemas import SCHEMAS
from services.router.rest.service import Service
from services.router.rest.table import ROUTES
from tests.support.rest import Backend

DATATYPES = ("BOOL", "UINT8", "INT64", "FP16", "BF16", "FP32", "FP64", "STRING")
MODELS = ("two", "batched", "stream", *DATATYPES)
LIMIT = 1 << 16
EXAMPLES = 2 * settings().max_examples

# --- bodies ---------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        *("X", "Y", "id", "inputs", "parameters", "data", "b64", "binary_data_size", "log_info"),
        *("priority", "timeout", "sequence_id", "triton_x", "classification", "binary_data"),
        *("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "config"),
        *("file:1/model.py", "trace_level", "a\0b", "\udcff", "é", ""),
    ]
)
NUMBERS = st.integers(-3, 9) | st.sampled_from([2**31, 2**63, 2**64 - 1, 2**64, -(2**63) - 1])
TEXT = NAMES | st.sampled_from([*SIZES, "BYTES", "STRING", "NaN", "-Infinity", "eA==", "=", "1"])
LEAVES = st.none() | st.booleans() | NUMBERS | st.floats() | TEXT
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def one_in(
    many: int, rare: st.SearchStrategy[Any], usual: st.SearchStrategy[Any]
) -> st.SearchStrategy[Any]:
    return st.integers(1, many).flatmap(lambda drawn: rare if drawn == many else usual)


def drawn_from(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Documents of a schema, now and then with another value in any place."""
    kind = schema.get("type")
    if isinstance(kind, list):
        found = st.one_of(*(drawn_from({"type": one}) for one in kind))
    elif kind == "array":
        found = st.lists(drawn_from(schema.get("items", {})), max_size=3)
    elif kind == "object":
        found = objects(schema)
    else:
        simple = {
            "string": TEXT,
            "integer": NUMBERS,
            "boolean": st.booleans(),
            "number": st.floats() | NUMBERS,
        }
        found = simple.get(str(kind), ANYTHING)
    return one_in(16, ANYTHING, found)


def objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    members = {name: drawn_from(one) for name, one in schema.get("properties", {}).items()}
    needed = set(schema.get("required", ()))
    known = st.fixed_dictionaries(
        {name: one for name, one in members.items() if name in needed},
        optional={name: one for name, one in members.items() if name not in needed},
    )
    more = schema.get("additionalProperties", True)
    others = st.dictionaries(NAMES, ANYTHING if more is True else drawn_from(more), max_size=2)
    return st.builds(lambda known, others: {**others, **known}, known, others)


TENSOR = st.fixed_dictionaries(
    {
        "name": st.just("X"),
        "datatype": st.sampled_from([*SIZES, "BYTES", "STRING", "fp32", ""]),
        "shape": st.lists(st.integers(0, 2), max_size=2),
    },
    optional={
        "data": st.lists(st.integers(0, 2) | LEAVES, max_size=4),
        "parameters": st.dictionaries(NAMES, LEAVES, max_size=2),
    },
)
#: What the schema leaves open, and what it takes to get far.
USUAL = {
    "InferRequest": st.fixed_dictionaries(
        {"inputs": st.lists(TENSOR, max_size=2)},
        optional={
            "id": TEXT,
            "parameters": st.dictionaries(NAMES, LEAVES, max_size=2),
            "outputs": drawn_from(SCHEMAS["InferRequest"]["properties"]["outputs"]),
        },
    ),
    "GenerateRequest": st.dictionaries(NAMES, LEAVES | st.lists(LEAVES, max_size=3), max_size=3),
    "PredictRequest": st.fixed_dictionaries(
        {}, optional={"inputs": st.dictionaries(st.just("X"), ANYTHING), "instances": ANYTHING}
    ),
}


def written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")


def bodies(takes: str) -> st.SearchStrategy[bytes]:
    if not takes:
        return st.just(b"") | st.binary(max_size=9)
    documents = drawn_from(SCHEMAS[takes])
    if takes in USUAL:
        documents = USUAL[takes] | documents
    text = documents.map(written)
    cut = st.tuples(text, st.integers(0, 40)).map(lambda pair: pair[0][: -pair[1] or None])
    longer = st.tuples(text, st.binary(max_size=8)).map(b"".join)
    return one_in(8, cut | longer | st.binary(max_size=20), text)


HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("content-encoding", "accept-encoding", "inference-header-content-length"),
            *("content-length", "x-request-timeout", "grpc-timeout", "traceparent", "host"),
            *("origin", "x-shoal-tenant", "content-type"),
        ]
    ),
    st.sampled_from(["", "gzip", "deflate;q=2", "br", "7", "-1", "5S", "1e9", "x", "é\0", "null"]),
    max_size=2,
)


# --- the port -------------------------------------------------------------------------------------


class Port:
    """The application, with models that return their inputs and calls that return nothing."""

    def __init__(self) -> None:
        self.backend = Backend()
        watch = PlacementWatch({}, "router-test", Table(), None)
        for name in MODELS:
            watch.table.routes[name] = Route(1, {"stable": 1}, {1: VersionRoute(servers=("a",))})
        watch.synchronized.set()
        rpcs = [name for name in dir(service_pb2) if name.endswith("Request")]
        answers = {name.removesuffix("Request"): self._nothing for name in rpcs}
        self.app = app(
            Service(
                watch=watch,
                inference=self.backend,  # type: ignore[arg-type]
                callers=CallerPolicy(),
                answers={**answers, "ModelConfig": self._config},
                metrics=self._metrics,
                pages=pages(ROUTES, "1"),
                max_body=LIMIT,
                max_json=LIMIT,
                responses=self.backend.stream,
            )
        )

    async def _metrics(self) -> bytes:
        return b""

    async def _nothing(self, request: Any, call: Call) -> Any:
        name = type(request).__name__.replace("Request", "Response")
        return getattr(service_pb2, name)()

    async def _config(self, request: Any, call: Call) -> Any:
        config = model_config_pb2.ModelConfig(name=request.name)
        config.max_batch_size = 4 * (request.name == "batched")
        config.model_transaction_policy.decoupled = request.name == "stream"
        datatype = request.name if request.name in DATATYPES else "FP32"
        for name in ("X", "Y") if request.name == "two" else ("X",):
            config.input.add(name=name, data_type=f"TYPE_{datatype}", dims=[-1])
        return service_pb2.ModelConfigResponse(config=config)

    async def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        """Return the status and the body of an answer."""
        received = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            if received:
                return received.pop()
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 9),
        }
        await self.app(scope, receive, send)
        return sent[0]["status"], b"".join(part["body"] for part in sent[1:])


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def test_the_schemas_of_all_bodies_are_drawn_from() -> None:
    told = json.dumps(document(ROUTES, "1")["paths"])
    for route in ROUTES:
        if route.takes:
            assert f"#/components/schemas/{route.takes}" in told


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_no_input_fails_inside_the_router(route: Any, runner: asyncio.Runner) -> None:
    port = Port()
    odd = [*(f"{name}:stable" for name in MODELS), "1", "é", "\0", "a/b", "..", ":", "0"]
    model = one_in(8, st.sampled_from(odd), st.sampled_from(MODELS))
    version = one_in(8, st.sampled_from(odd), st.sampled_from(["1", "stable"]))

    @settings(max_examples=EXAMPLES if route.takes else 50)
    @given(
        st.sampled_from(route.methods),
        st.sampled_from(route.paths),
        st.tuples(model, version, version),
        one_in(8, HEADERS, st.just({})),
        bodies(route.takes),
    )
    def asked(
        method: str, path: str, words: tuple[str, ...], headers: dict[str, str], body: bytes
    ) -> None:
        left = iter(words)
        asked = re.sub(r"{\w+}", lambda _: quote(next(left), safe=":"), path)
        status, answer = runner.run(port.ask(method, asked, headers, body))
        assert b"failed inside the Router" not in answer, answer
        assert status != 405

    with capture_logs():  # writing a traceback for each failure would take minutes
        asked()
