"""The HTTP port against Triton's own HTTP server: the same requests, the same answers."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton_http
import tritonclient.http.aio
import urllib3
from tritonclient.utils import np_to_triton_dtype, shared_memory

from services.embedded.background import BackgroundStack
from services.embedded.ports import pick
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.registry.v1 import registry_service_pb2 as registry
from tests.support.stack import ADMIN_HEADER, EXAMPLES, Fleet, example
from tests.support.triton_direct import DirectTriton, triton_direct
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

TYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "STRING"),
)

ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = [(t.name(), t.as_numpy()) for t in request.inputs()]
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name + "_OUT", array) for name, array in given]
        )
"""

TELLER = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        length = pb_utils.get_input_tensor_by_name(request, "LENGTH").as_numpy().item()
        if length:
            raise ValueError("x" * length)
        parameters = json.dumps(json.loads(request.parameters()), sort_keys=True)
        told = f"{parameters} {request.correlation_id()} {request.timeout()}"
        return pb_utils.InferenceResponse([pb_utils.Tensor("TOLD", np.array([told], np.object_))])
"""

REPEAT = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            words = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().ravel()
            for word in words[0].split():
                if word == b"fail":
                    error = pb_utils.TritonError("told to fail")
                    sender.send(pb_utils.InferenceResponse(error=error))
                else:
                    tensor = pb_utils.Tensor("WORD", np.array([word], np.object_))
                    sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""


def write(folder: Path, name: str, code: str, config: str) -> None:
    version = folder / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(code)
    group = "instance_group [{ count: 1 kind: KIND_CPU }]"
    text = f'name: "{name}"\nbackend: "python"\n{config}\n{group}'
    (folder / name / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rest")
    for name in ("multiplier", "text_stats", "densenet_onnx"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(EXAMPLES / name, folder / name, ignore=unwanted)
    tensors = "\n".join(
        f'input [{{ name: "{kind}" data_type: TYPE_{kind} dims: [-1] optional: true }}]\n'
        f'output [{{ name: "{kind}_OUT" data_type: TYPE_{kind} dims: [-1] }}]'
        for kind in TYPES
    )
    write(folder, "kinds", ECHO, tensors)
    write(
        folder,
        "teller",
        TELLER,
        'input [{ name: "LENGTH" data_type: TYPE_INT32 dims: [1] }]\n'
        'output [{ name: "TOLD" data_type: TYPE_STRING dims: [1] }]',
    )
    write(
        folder,
        "repeat",
        REPEAT,
        'input [{ name: "TEXT" data_type: TYPE_STRING dims: [1] }]\n'
        'output [{ name: "WORD" data_type: TYPE_STRING dims: [1] }]\n'
        "model_transaction_policy { decoupled: true }",
    )
    return folder


@pytest.fixture(scope="module")
def stack(repository: Path) -> Iterator[Fleet]:
    with BackgroundStack(
        f"--repository={repository}",
        "--max-models=7",
        environment={"OTEL_BSP_SCHEDULE_DELAY": "100", "SHOAL_ROUTER_SHARED_MEMORY": "true"},
    ) as running:
        yield Fleet(running)


@dataclass(frozen=True)
class Server:
    """`headers`: what its restricted calls ask for."""

    url: str
    headers: dict[str, str]
    pool: urllib3.PoolManager = field(default_factory=urllib3.PoolManager)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.pool.request(
            method,
            f"http://{self.url}{path}",
            body=body,
            headers={**self.headers, **given},
            decode_content=False,
            retries=False,
            timeout=30,
        )


@pytest.fixture(scope="module")
def shoal(stack: Fleet) -> Server:
    return Server(stack.router_http, {})


@pytest.fixture(scope="module")
def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    (port,) = pick(1)
    folder = tmp_path_factory.mktemp("direct")
    with triton_direct(folder, repository, http_port=port) as direct:
        load_all(direct, repository)
        headers = {ADMIN_HEADER.removeprefix("triton-grpc-protocol-"): direct.spec.admin_secret}
        server = Server(f"127.0.0.1:{port}", headers)
        yield server
        server.pool.clear()  # it waits for its connections to end


def load_all(direct: DirectTriton, repository: Path) -> None:
    for model in repository.iterdir():
        direct.load(model.name)


def parts(answer: urllib3.BaseHTTPResponse) -> tuple[Any, bytes]:
    """The JSON of a body, and what follows it."""
    size = int(answer.headers.get("inference-header-content-length", len(answer.data)))
    text = answer.data[:size]
    try:
        return json.loads(text) if text else None, answer.data[size:]
    except ValueError:
        return text, b""


# --- the same as Triton ---------------------------------------------------------------------------


def tensor(name: str, datatype: str, data: Any, shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def inputs(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


NUMBERS = tensor("INPUT", "FP32", [1.5, -2.0, 0.1], [1, 3])
TEXT = tensor("TEXT", "BYTES", ["a shoal of fish", "été", ""])
INFER = "/v2/models/multiplier/versions/1/infer"
STATS = "/v2/models/text_stats/infer"
KINDS = "/v2/models/kinds/infer"
REPEATING = "/v2/models/repeat"
TELLING = "/v2/models/teller/generate"


def multiplied(**changed: Any) -> bytes:
    given = {k: v for k, v in {**NUMBERS, **changed}.items() if v is not None}
    return inputs(given)


GOOD = {
    "json": ("POST", INFER, inputs(NUMBERS)),
    "id and parameters": ("POST", INFER, inputs(NUMBERS, id="7", parameters={"a": 1, "b": "x"})),
    "no version": ("POST", "/v2/models/multiplier/infer", inputs(NUMBERS)),
    "nested data": ("POST", INFER, inputs(tensor("INPUT", "FP32", [[1, 2], [3, 4]], [2, 2]))),
    "numbers that are none": ("POST", INFER, b'{"inputs":[{"name":"INPUT","datatype":"FP32",'
                              b'"shape":[1,2],"data":[NaN,Infinity]}]}'),
    "text": ("POST", STATS, inputs(TEXT)),
    "some outputs": ("POST", STATS, inputs(TEXT, outputs=[{"name": "ENTROPY"}])),
    "binary outputs": ("POST", STATS, inputs(TEXT, parameters={"binary_data_output": True})),
    "one output binary": (
        "POST",
        STATS,
        inputs(
            TEXT,
            outputs=[
                {"name": "COUNTS", "parameters": {"binary_data": True}},
                {"name": "LONGEST_WORD"},
            ],
        ),
    ),
    "every datatype": (
        "POST",
        KINDS,
        inputs(
            tensor("BOOL", "BOOL", [True, False]),
            tensor("UINT8", "UINT8", [0, 255, 300]),
            tensor("UINT16", "UINT16", [65535]),
            tensor("UINT32", "UINT32", [2**32 - 1]),
            tensor("UINT64", "UINT64", [2**64 - 1]),
            tensor("INT8", "INT8", [-128, 127, 200]),
            tensor("INT16", "INT16", [-(2**15)]),
            tensor("INT32", "INT32", [-(2**31)]),
            tensor("INT64", "INT64", [-(2**63), 2**63 - 1]),
            tensor("FP32", "FP32", [0.1, 1, 3.4e38]),
            tensor("FP64", "FP64", [0.1, 1e308]),
            tensor("STRING", "BYTES", ["é", "", "\u0000\n\""]),
        ),
    ),
    "classification": (
        "POST",
        INFER,
        inputs(NUMBERS, outputs=[{"name": "OUTPUT", "parameters": {"classification": 2}}]),
    ),
    "model ready": ("GET", "/v2/models/multiplier/versions/2/ready", None),
    "model metadata": ("GET", "/v2/models/densenet_onnx", None),
    "metadata of all versions": ("GET", "/v2/models/multiplier", None),
    "metadata of a version": ("GET", "/v2/models/multiplier/versions/2", None),
    "metadata of text": ("GET", "/v2/models/text_stats/versions/1", None),
    "generate": ("POST", "/v2/models/text_stats/generate", b'{"TEXT":"few shoals","id":"g","x":1}'),
    "generate stream": ("POST", "/v2/models/text_stats/generate_stream", b'{"TEXT":["a b","c"]}'),
    "generate with parameters": (
        "POST",
        "/v2/models/text_stats/generate",
        b'{"parameters":{"TEXT":["a"],"seed":3}}',
    ),
    "generate with parameters of the scheduler": (
        "POST",
        TELLING,
        b'{"LENGTH":0,"priority":-1,"timeout":5,"sequence_id":"high","parameters":{"sequence_start":2}}',
    ),
    "byte order mark": ("POST", INFER, b"\xef\xbb\xbf" + inputs(NUMBERS)),
    "NUL behind": ("POST", INFER, inputs(NUMBERS) + b"\0"),
    "names that come twice": ("POST", INFER, b'{"id":"a","id":"b",' + inputs(NUMBERS)[1:]),
    "text that is not UTF-8": ("POST", KINDS, b'{"inputs":[{"name":"STRING","datatype":"BYTES",'
                               b'"shape":[1],"data":["\xff\xfe"]}]}'),
    "decoupled stream": ("POST", f"{REPEATING}/generate_stream", b'{"TEXT":"one two three"}'),
    "decoupled error in a stream": (
        "POST",
        f"{REPEATING}/generate_stream",
        b'{"TEXT":"one fail"}',
    ),
    "decoupled, one": ("POST", f"{REPEATING}/generate", b'{"TEXT":"one"}'),
}  # fmt: skip

BAD = {
    "no such path": ("GET", "/v2/", None),
    "no such path either": ("GET", "/v2/health", None),
    "wrong method": ("GET", INFER, None),
    "wrong method of health": ("POST", "/v2/health/live", None),
    "wrong method of index": ("GET", "/v2/repository/index", None),
    "broken json": ("POST", INFER, b'{"inputs": }'),
    "more after json": ("POST", INFER, b'{"inputs": []} x'),
    "half of json": ("POST", INFER, b'{"inputs": ['),
    "json that is no object": ("POST", INFER, b"3"),
    "no inputs": ("POST", INFER, b"{}"),
    "no input": ("POST", INFER, inputs()),
    "inputs that are no list": ("POST", INFER, b'{"inputs": {}}'),
    "unknown input": ("POST", INFER, multiplied(name="NOPE")),
    "unknown output": ("POST", INFER, inputs(NUMBERS, outputs=[{"name": "NOPE"}])),
    "input without name": ("POST", INFER, multiplied(name=None)),
    "input without datatype": ("POST", INFER, multiplied(datatype=None)),
    "input without shape": ("POST", INFER, multiplied(shape=None)),
    "input without data": ("POST", INFER, multiplied(data=None)),
    "data and binary": ("POST", INFER, multiplied(parameters={"binary_data_size": 4})),
    "wrong shape": ("POST", INFER, multiplied(shape=[3])),
    "shape of other data": ("POST", INFER, multiplied(shape=[1, 2])),
    "more shape than data": ("POST", INFER, multiplied(shape=[2, 3])),
    "negative shape": ("POST", INFER, multiplied(shape=[1, -1])),
    "batch too large": ("POST", INFER, multiplied(shape=[9, 1], data=[1] * 9)),
    "another datatype": ("POST", INFER, multiplied(datatype="INT32", data=[1, 2, 3])),
    "no datatype": ("POST", INFER, multiplied(datatype="FP31")),
    "data that is text": ("POST", INFER, multiplied(data=["1", "2", "3"])),
    "data that is no list": ("POST", INFER, multiplied(data=3)),
    "data with null": ("POST", INFER, multiplied(data=[1, None, 2])),
    "numbers for text": ("POST", STATS, inputs({**TEXT, "data": [1, 2, 3]})),
    "too little text": ("POST", STATS, inputs({**TEXT, "data": ["a"]})),
    "half precision": ("POST", KINDS, inputs(tensor("FP16", "FP16", [1.5]))),
    "number for bool": ("POST", KINDS, inputs(tensor("BOOL", "BOOL", [1]))),
    "real for integer": ("POST", KINDS, inputs(tensor("INT32", "INT32", [1.5]))),
    "negative for unsigned": ("POST", KINDS, inputs(tensor("UINT8", "UINT8", [-1]))),
    "id that is no text": ("POST", INFER, inputs(NUMBERS, id=7)),
    "parameters that are none": ("POST", INFER, inputs(NUMBERS, parameters=[1])),
    "parameter of no kind": ("POST", INFER, inputs(NUMBERS, parameters={"x": None})),
    "reserved parameter": ("POST", INFER, inputs(NUMBERS, parameters={"triton_x": 1})),
    "sequence start that is none": (
        "POST",
        INFER,
        inputs(NUMBERS, parameters={"sequence_start": "yes"}),
    ),
    "raw body for several inputs": ("POST", KINDS, b""),
    "decoupled": ("POST", f"{REPEATING}/infer", inputs(tensor("TEXT", "BYTES", ["a"]))),
    "generate without json": ("POST", "/v2/models/text_stats/generate", b"{"),
    "generate with a list": ("POST", "/v2/models/text_stats/generate", b"[]"),
    "generate without input": ("POST", "/v2/models/text_stats/generate", b'{"x":1}'),
    "generate with null": ("POST", "/v2/models/text_stats/generate", b'{"x":null}'),
    "generate with numbers": ("POST", "/v2/models/text_stats/generate", b'{"TEXT":3}'),
    "generate stream without input": ("POST", "/v2/models/text_stats/generate_stream", b"{}"),
    "repository named": ("POST", "/v2/repository/mine/models/multiplier/load", None),
    "index that is none": ("POST", "/v2/repository/index", b'{"ready": 1}'),
}


def sent(server: Server, case: tuple[str, str, bytes | None], **headers: Any) -> Any:
    """Status, JSON, what follows it, and the kind of content."""
    answer = server.ask(*case, **headers)
    document, rest = parts(answer)
    return answer.status, document, rest, answer.headers.get("content-type")


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD)
def test_good_requests(shoal: Server, triton: Server, case: tuple[str, str, bytes | None]) -> None:
    wanted = sent(triton, case)
    assert wanted[0] == 200, wanted
    found = sent(shoal, case)
    assert str(found) == str(wanted), "as text, because NaN is not NaN"


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_requests(shoal: Server, triton: Server, case: tuple[str, str, bytes | None]) -> None:
    wanted = sent(triton, case)
    found = sent(shoal, case)
    assert found[:3] == wanted[:3]


def binary(
    *tensors: dict[str, Any], contents: bytes, size: int | None = None, **more: Any
) -> tuple[bytes, dict[str, str]]:
    text = inputs(*tensors, **more)
    length = len(text) if size is None else size
    return text + contents, {"inference_header_content_length": str(length)}


def in_binary(name: str, datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}


RAW = np.array([1.5, -2.0, 0.1], np.float32).tobytes()
AS_BINARY = in_binary("INPUT", "FP32", [1, 3], 12)
IMAGE = np.linspace(0, 1, 3 * 224 * 224, dtype=np.float32).tobytes()
BINARY: dict[str, tuple[str, tuple[bytes, dict[str, str]]]] = {
    "binary": (INFER, binary(AS_BINARY, contents=RAW)),
    "binary both ways": (
        INFER,
        binary(AS_BINARY, contents=RAW, parameters={"binary_data_output": True}),
    ),
    "classification with labels": (
        "/v2/models/densenet_onnx/infer",
        binary(
            in_binary("data_0", "FP32", [3, 224, 224], len(IMAGE)),
            contents=IMAGE,
            outputs=[{"name": "fc6_1", "parameters": {"classification": 2}}],
        ),
    ),
    "two, one of them empty, and one in json": (
        KINDS,
        binary(
            in_binary("FP16", "FP16", [3], 6),
            in_binary("INT64", "INT64", [0], 0),
            tensor("INT8", "INT8", [1, 2]),
            in_binary("STRING", "BYTES", [1], 6),
            contents=b"\x00\x3c\x00\x40\x00\x42" + b"\x02\x00\x00\x00hi",
            parameters={"binary_data_output": True},
        ),
    ),
    "half precision comes in binary only": (
        KINDS,
        binary(in_binary("FP16", "FP16", [1], 2), contents=b"\x00\x3c"),
    ),
    "too little": (INFER, binary(AS_BINARY, contents=RAW[:-1])),
    "too much": (INFER, binary(AS_BINARY, contents=RAW + b"x")),
    "another size than the shape": (
        INFER,
        binary(in_binary("INPUT", "FP32", [1, 3], 8), contents=RAW[:8]),
    ),
    "header beyond the body": (INFER, binary(AS_BINARY, contents=RAW, size=9999)),
    "header too short": (INFER, binary(AS_BINARY, contents=RAW, size=9)),
    "negative header": (INFER, binary(AS_BINARY, contents=RAW, size=-1)),
    "no header for binary": (INFER, (inputs(AS_BINARY), {})),
    "raw": (INFER, (RAW, {"inference_header_content_length": "0"})),
    "raw text": (f"{REPEATING}/infer", (b"a b", {"inference_header_content_length": "0"})),
    "raw of several inputs": (KINDS, (RAW, {"inference_header_content_length": "0"})),
    "unknown coding": (INFER, (inputs(NUMBERS), {"content_encoding": "br"})),
    "compressed generate": (
        "/v2/models/text_stats/generate",
        (b'{"TEXT":"a"}', {"content_encoding": "gzip"}),
    ),
    "empty and compressed": (INFER, (b"", {"content_encoding": "gzip"})),
    "any type of content": (INFER, (inputs(NUMBERS), {"content_type": "text/plain"})),
}  # fmt: skip


@pytest.mark.parametrize(("path", "given"), BINARY.values(), ids=BINARY)
def test_binary_requests(
    shoal: Server, triton: Server, path: str, given: tuple[bytes, dict[str, str]]
) -> None:
    body, headers = given
    wanted = sent(triton, ("POST", path, body), **headers)
    found = sent(shoal, ("POST", path, body), **headers)
    assert found[:3] == wanted[:3]
    if wanted[0] == 200:
        assert found[3] == wanted[3]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_answers_are_compressed_where_triton_does(
    shoal: Server, triton: Server, coding: str
) -> None:
    for server in (shoal, triton):
        answer = server.ask("POST", INFER, inputs(NUMBERS), accept_encoding=f"br, {coding}")
        assert answer.headers["content-encoding"] == coding


# --- and where it differs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "datatype"),
    [
        (
            STATS,
            inputs(TEXT, outputs=[{"name": "LONGEST_WORD", "parameters": {"classification": 1}}]),
            "BYTES",
        ),
        (
            KINDS,
            inputs(
                tensor("BOOL", "BOOL", [True]),
                outputs=[{"name": "BOOL_OUT", "parameters": {"classification": 1}}],
            ),
            "BOOL",
        ),
    ],
)
def test_classes_of_what_has_none_are_refused_and_no_server_ends(
    stack: Fleet, shoal: Server, path: str, body: bytes, datatype: str
) -> None:
    before = stack.stack.announced().pid_of("triton-0")
    status, found, _, _ = sent(shoal, ("POST", path, body))
    assert status == 400
    assert found["error"] == (
        f"class result not available for output due to unsupported type '{datatype}'"
    )
    assert stack.stack.announced().pid_of("triton-0") == before


def test_an_error_is_no_success(shoal: Server, triton: Server) -> None:
    case = ("POST", f"{REPEATING}/generate", b'{"TEXT":"one two"}')
    wanted, found = sent(triton, case), sent(shoal, case)
    assert (wanted[0], found[0]) == (200, 500)
    assert found[1] == wanted[1]


@pytest.mark.parametrize("length", [12_000, 200_000])
def test_an_error_of_any_length_is_whole(shoal: Server, triton: Server, length: int) -> None:
    body = inputs(tensor("LENGTH", "INT32", [length]))
    for server in (shoal, triton):
        answer = server.ask("POST", "/v2/models/teller/infer", body)
        assert answer.status == 500
        assert "x" * length in json.loads(answer.data)["error"]


def test_a_stream_ends_with_its_first_error(shoal: Server, triton: Server) -> None:
    case = ("POST", f"{REPEATING}/generate_stream", b'{"TEXT":"one fail two"}')
    wanted, found = sent(triton, case)[1], sent(shoal, case)[1]
    assert found == wanted[: wanted.index(b'data: {"WORD":"two"')]


def test_unknown_models_are_refused_with_more_words(shoal: Server, triton: Server) -> None:
    for path in ("/v2/models/nope/infer", "/v2/models/multiplier/versions/9/infer"):
        wanted, found = (sent(s, ("POST", path, b"{")) for s in (triton, shoal))
        assert found[0] == wanted[0]
        assert found[1]["error"].startswith(wanted[1]["error"].split(" (")[0])
        assert found[1]["reason"] in ("MODEL_NOT_FOUND", "VERSION_NOT_FOUND")


def test_the_config_is_tritons_but_for_the_policy(shoal: Server, triton: Server) -> None:
    path = "/v2/models/multiplier/versions/1/config"
    wanted, found = (sent(s, ("GET", path, None))[1] for s in (triton, shoal))
    differing = {key for key in wanted | found if wanted.get(key) != found.get(key)}
    # What a Triton fills in by itself.
    assert differing <= {"instance_group", "optimization", "version_policy"}, differing
    assert found["input"] == wanted["input"]


def test_the_index_has_the_same_rows(shoal: Server, triton: Server) -> None:
    def rows(server: Server, body: bytes) -> set[tuple[str, ...]]:
        found = sent(server, ("POST", "/v2/repository/index", body))[1]
        return {(row["name"], row["version"], row["state"]) for row in found}

    for body in (b"", b'{"ready":true}'):
        assert rows(shoal, body) == rows(triton, body)


def test_health_has_a_body(shoal: Server, triton: Server) -> None:
    for word in ("live", "ready"):
        case = ("GET", f"/v2/health/{word}", None)
        assert sent(triton, case)[:2] == (200, None)
        assert sent(shoal, case)[:2] == (200, {word: True}), "which KServe's client reads"


def test_the_server_has_tritons_name(shoal: Server) -> None:
    found = sent(shoal, ("GET", "/v2", None))[1]
    assert found["name"] == "triton"
    assert "classification" in found["extensions"]


def test_a_model_that_is_not_there_is_not_ready(shoal: Server, triton: Server) -> None:
    for path in ("/v2/models/nope/ready", "/v2/models/multiplier/versions/9/ready"):
        assert shoal.ask("GET", path).status == triton.ask("GET", path).status


# --- administration -------------------------------------------------------------------------------

REPOSITORY = "/v2/repository/models"

ADMINISTRATION = {
    "load": ("POST", f"{REPOSITORY}/kinds/load", b""),
    "unload of what is not there": ("POST", f"{REPOSITORY}/nope/unload", b""),
    "unload with a flag": (
        "POST",
        f"{REPOSITORY}/nope/unload",
        b'{"parameters":{"unload_dependents":true}}',
    ),
    "load with a parameter of no kind": (
        "POST",
        f"{REPOSITORY}/kinds/load",
        b'{"parameters":{"x":"1"}}',
    ),
    "load with a number": ("POST", f"{REPOSITORY}/kinds/load", b'{"parameters":{"config":1}}'),
    "log settings": ("GET", "/v2/logging", None),
    "log level that is none": ("POST", "/v2/logging", b'{"log_verbose_level":-1}'),
    "log file": ("POST", "/v2/logging", b'{"log_file":"/tmp/x"}'),
    "log settings of no json": ("POST", "/v2/logging", b""),
    "trace rate that is none": ("POST", "/v2/trace/setting", b'{"trace_rate":1}'),
    "trace level that is none": ("POST", "/v2/trace/setting", b'{"trace_level":"OFF"}'),
    "statistics of an unknown model": ("GET", "/v2/models/nope/stats", None),
    "wrong method of logging": ("DELETE", "/v2/logging", None),
    "regions": ("GET", "/v2/systemsharedmemory/status", None),
    "a region that is not there": ("GET", "/v2/systemsharedmemory/region/nope/status", None),
    "unregister what is not there": (
        "POST",
        "/v2/systemsharedmemory/region/nope/unregister",
        b"",
    ),
    "unregister all": ("POST", "/v2/systemsharedmemory/unregister", b""),
    "regions of a device": ("GET", "/v2/cudasharedmemory/status", None),
    "no such memory": (
        "POST",
        "/v2/systemsharedmemory/region/a/register",
        b'{"key":"/no-such-key","byte_size":8}',
    ),
    "a tensor in a region that is not there": (
        "POST",
        INFER,
        inputs(
            {
                "name": "INPUT",
                "datatype": "FP32",
                "shape": [1, 2],
                "parameters": {"shared_memory_region": "nope", "shared_memory_byte_size": 8},
            }
        ),
    ),
    "wrong method of memory": ("POST", "/v2/systemsharedmemory/status", None),
    "wrong method of registration": ("GET", "/v2/cudasharedmemory/region/a/register", None),
    "region without name": ("POST", "/v2/systemsharedmemory/register", b"{}"),
    "region without key": ("POST", "/v2/systemsharedmemory/region/a/register", b"{}"),
}


@pytest.mark.parametrize("case", ADMINISTRATION.values(), ids=ADMINISTRATION)
def test_administration(shoal: Server, triton: Server, case: tuple[str, str, bytes | None]) -> None:
    wanted, found = sent(triton, case), sent(shoal, case)
    assert found[0] == wanted[0], found
    if wanted[0] == 200:
        assert found[1] == wanted[1]
    elif wanted[1] is not None:
        # Where Shoal has more to say it begins with Triton's words.
        assert found[1]["error"].startswith(wanted[1]["error"])


def shape(document: Any) -> Any:
    """The document with types in the place of numbers and texts."""
    if isinstance(document, dict):
        return {name: shape(value) for name, value in document.items()}
    return [shape(document[0])] if isinstance(document, list) and document else type(document)


def test_statistics_look_like_tritons(shoal: Server, triton: Server) -> None:
    for path in ("/v2/models/text_stats/versions/1/stats", "/v2/models/stats"):
        for server in (shoal, triton):
            server.ask("POST", STATS, inputs(TEXT))
        wanted, found = (sent(server, ("GET", path, None)) for server in (triton, shoal))
        rows = [
            next(row for row in one[1]["model_stats"] if row["name"] == "text_stats")
            for one in (wanted, found)
        ]
        assert shape(rows[1]) == shape(rows[0])
        assert rows[1]["inference_count"] > 0


def test_trace_settings_look_like_tritons(shoal: Server) -> None:
    status, found, _, _ = sent(shoal, ("GET", "/v2/trace/setting", None))
    assert status == 200
    assert isinstance(found["trace_level"], list)
    assert found["trace_mode"] in ("triton", "opentelemetry")


def test_unloading_means_leaving(shoal: Server) -> None:
    path = f"{REPOSITORY}/densenet_onnx"
    assert shoal.ask("POST", f"{path}/load", b"{}").status == 200
    assert servers_of(shoal, "densenet_onnx") == ["triton-0"]
    assert shoal.ask("POST", f"{path}/unload", b"").status == 200
    assert servers_of(shoal, "densenet_onnx") == []


# --- clients --------------------------------------------------------------------------------------


def client(stack: Fleet) -> triton_http.InferenceServerClient:
    return triton_http.InferenceServerClient(stack.router_http)


def http_tensors(arrays: dict[str, np.ndarray], *, binary_data: bool) -> list[Any]:
    found = []
    for name, array in arrays.items():
        one = triton_http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        one.set_data_from_numpy(array, binary_data=binary_data)
        found.append(one)
    return found


@pytest.mark.parametrize(
    ("model", "version", "binary_data"),
    [
        ("densenet_onnx", 1, True),
        ("multiplier", 2, True),
        ("multiplier", 2, False),
        ("text_stats", 1, True),  # of text in JSON the client makes no bytes
    ],
)
def test_stock_http_client(stack: Fleet, model: str, version: int, binary_data: bool) -> None:
    shown = example(model, version)
    outputs = [
        triton_http.InferRequestedOutput(name, binary_data=binary_data) for name in shown.expected
    ]
    with client(stack) as asking:
        result = asking.infer(
            model,
            http_tensors(dict(shown.inputs), binary_data=binary_data),
            model_version=str(version),
            outputs=outputs,
            request_compression_algorithm="gzip",
            response_compression_algorithm="deflate",
        )
    assert shown.mismatches({name: result.as_numpy(name) for name in shown.expected}) == []


def test_what_the_stock_client_asks_beside(stack: Fleet) -> None:
    with client(stack) as asking:
        assert asking.is_server_live()
        assert asking.is_server_ready()
        assert asking.is_model_ready("multiplier", "1")
        assert asking.get_server_metadata()["name"] == "triton"
        assert asking.get_model_metadata("multiplier")["versions"] == ["1", "2"]
        assert asking.get_model_config("multiplier")["max_batch_size"] == 8
        assert {row["name"] for row in asking.get_model_repository_index()} >= {"multiplier"}


async def test_the_stock_client_for_asyncio(stack: Fleet) -> None:
    shown = example("multiplier", 1)
    async with tritonclient.http.aio.InferenceServerClient(stack.router_http) as asking:
        result = await asking.infer(
            "multiplier",
            http_tensors(dict(shown.inputs), binary_data=True),
            model_version="1",
        )
    assert shown.mismatches({"OUTPUT": result.as_numpy("OUTPUT")}) == []


def test_a_sequence_and_a_priority_arrive(stack: Fleet) -> None:
    shown = example("multiplier", 1)
    with client(stack) as asking:
        result = asking.infer(
            "multiplier",
            http_tensors(dict(shown.inputs), binary_data=True),
            model_version="1",
            request_id="42",
            priority=0,
            timeout=10_000_000,
        )
    assert result.get_response()["id"] == "42"


def test_tensors_in_shared_memory(stack: Fleet) -> None:
    shown = example("multiplier", 1)
    given, wanted = shown.inputs["INPUT"], shown.expected["OUTPUT"]
    size = given.nbytes
    region = shared_memory.create_shared_memory_region("both", f"/rest-{os.getpid()}", 2 * size)
    try:
        shared_memory.set_shared_memory_region(region, [given])
        with client(stack) as asking:
            asking.register_system_shared_memory("both", f"/rest-{os.getpid()}", 2 * size)
            assert [row["name"] for row in asking.get_system_shared_memory_status()] == ["both"]
            tensor_in = triton_http.InferInput("INPUT", list(given.shape), "FP32")
            tensor_in.set_shared_memory("both", size)
            tensor_out = triton_http.InferRequestedOutput("OUTPUT")
            tensor_out.set_shared_memory("both", size, size)
            result = asking.infer("multiplier", [tensor_in], "1", outputs=[tensor_out])
            assert result.get_output("OUTPUT")["shape"] == list(given.shape)
            found = shared_memory.get_contents_as_numpy(region, np.float32, given.shape, size)
            np.testing.assert_array_equal(found, wanted)
            asking.unregister_system_shared_memory("both")
            assert asking.get_system_shared_memory_status() == []
    finally:
        shared_memory.destroy_shared_memory_region(region)


# --- Shoal's own ----------------------------------------------------------------------------------


def servers_of(shoal: Server, model: str) -> list[str]:
    found = sent(shoal, ("GET", "/v1/models/status", None))[1]
    (row,) = [row for row in found["models"] if row["name"] == model]
    return list(row["versions"][0]["servers"])


def test_a_cold_model_answers(stack: Fleet, shoal: Server) -> None:
    stack.controller.EvictModel(controller.EvictModelRequest(name="models/text_stats"))
    wait_until(lambda: not servers_of(shoal, "text_stats"), 10, "text_stats is gone")
    status, found, _, _ = sent(shoal, ("POST", STATS, inputs(TEXT)), x_request_timeout="30")
    assert status == 200, found
    assert servers_of(shoal, "text_stats") == ["triton-0"]


def test_an_alias_is_a_version(stack: Fleet, shoal: Server) -> None:
    name = "models/multiplier/aliases/stable"
    stack.registry.SetAlias(registry.SetAliasRequest(name=name, version=1))
    try:
        path = "/v2/models/multiplier/versions/stable/infer"
        answer: Callable[[], Any] = lambda: sent(shoal, ("POST", path, inputs(NUMBERS)))  # noqa: E731
        wait_until(lambda: answer()[0] == 200, 5, "the alias reaches the Router")
        assert answer()[1]["model_version"] == "1"
        found = sent(shoal, ("GET", "/v1/models/multiplier:stable/metadata", None))[1]
        assert (found["versions"], found["aliases"]["stable"]) == (["1"], "1")
    finally:
        stack.registry.DeleteAlias(registry.DeleteAliasRequest(name=name))


@pytest.mark.parametrize(
    ("model", "body", "answer"),
    [
        ("multiplier:1", {"inputs": {"INPUT": [[1, 2], [3, 4]]}}, [[2, 4], [6, 8]]),
        ("multiplier:1", {"inputs": {"INPUT": [1, 2]}}, [2, 4]),
        ("multiplier:1", {"inputs": [[1, 2]]}, [[2, 4]]),
        ("multiplier:1", {"instances": [[1, 2], {"INPUT": [3, 4]}]}, [[2, 4], [6, 8]]),
        ("multiplier:1", {"instances": [1, 2, 3]}, [[2], [4], [6]]),
    ],
)
def test_plain_predictions(shoal: Server, model: str, body: Any, answer: Any) -> None:
    path = f"/v1/models/{model}/predict"
    status, found, _, _ = sent(shoal, ("POST", path, json.dumps(body).encode()))
    assert status == 200, found
    given = found["outputs"]["OUTPUT"] if "inputs" in body else found["predictions"]
    assert given == answer
    assert (found["model"], found["version"]) == ("multiplier", "1")


def test_what_a_client_of_kserves_first_protocol_asks(shoal: Server) -> None:
    assert sent(shoal, ("GET", "/", None))[1]["status"] == "alive"
    assert sent(shoal, ("GET", "/v1/models/multiplier", None))[:2] == (
        200,
        {"name": "multiplier", "ready": True},
    )
    assert sent(shoal, ("GET", "/v1/models/nope", None))[0] == 404
    path = "/v1/models/multiplier:predict"
    assert sent(shoal, ("POST", path, b'{"instances":[[1.5]]}'))[1]["predictions"] == [[15.0]]


def test_plain_text_and_bytes(shoal: Server) -> None:
    body = json.dumps({"instances": [{"STRING": ["été", {"b64": "/8M="}]}]}).encode()
    status, found, _, _ = sent(shoal, ("POST", "/v1/models/kinds/predict", body))
    assert status == 200, found
    assert found["predictions"] == [["été", {"b64": "/8M="}]]


def test_half_precision_in_plain_numbers(shoal: Server) -> None:
    body = json.dumps({"inputs": {"FP16": [0.5, 1.25]}}).encode()
    status, found, _, _ = sent(shoal, ("POST", "/v1/models/kinds/predict", body))
    assert (status, found["outputs"]) == (200, {"FP16_OUT": [0.5, 1.25]})


def test_plain_metadata(shoal: Server) -> None:
    found = sent(shoal, ("GET", "/v1/models/multiplier/metadata", None))[1]
    assert (found["versions"], found["default_version"]) == (["1", "2"], "2")
    assert (found["max_batch_size"], found["decoupled"]) == (8, False)


def test_a_traced_request_is_a_span(stack: Fleet, shoal: Server) -> None:
    trace, parent = os.urandom(16).hex(), os.urandom(8).hex()
    assert shoal.ask("POST", INFER, inputs(NUMBERS), traceparent=f"00-{trace}-{parent}-01").status
    collector = Server(stack.otlp_http, {})

    def spans() -> dict[str, Any]:
        found = parts(collector.ask("GET", f"/api/traces/{trace}"))[0] or {}
        return {span["name"]: span for span in found.get("spans", ())}

    name = "POST /v2/models/{model}/versions/{version}/infer"
    wait_until(lambda: {name, "forward"} <= spans().keys(), 15, "the Router's spans")
    assert spans()[name]["parent_span_id"] == parent


def test_metrics_count_what_came_by_http(shoal: Server) -> None:
    def count() -> float:
        text = shoal.ask("GET", "/metrics").data.decode()
        found = re.search(
            r'^shoal_router_requests_total{model="multiplier",version="1"} (\S+)$', text, re.M
        )
        return float(found[1]) if found else 0.0

    before = count()
    shoal.ask("POST", INFER, inputs(NUMBERS))
    wait_until(lambda: count() == before + 1, 5, "the request is counted")
