"""What NVIDIA's own client examples do, and what they look for in the answers."""

import queue
import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException, shared_memory

from services.embedded.background import BackgroundStack
from tests.support.stack import Fleet

pytestmark = pytest.mark.triton

SIMPLE = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            one, two = (pb.get_input_tensor_by_name(request, name).as_numpy()
                        for name in ("INPUT0", "INPUT1"))
            answers.append(pb.InferenceResponse(
                [pb.Tensor("OUTPUT0", one + two), pb.Tensor("OUTPUT1", one - two)]))
        return answers
"""
STRING = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            one, two = (pb.get_input_tensor_by_name(request, n).as_numpy().astype(int)
                        for n in ("INPUT0", "INPUT1"))
            answers.append(pb.InferenceResponse([
                pb.Tensor("OUTPUT0", (one + two).astype(str).astype(np.object_)),
                pb.Tensor("OUTPUT1", (one - two).astype(str).astype(np.object_))]))
        return answers
"""
IDENTITY = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        given = [pb.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        return [pb.InferenceResponse([pb.Tensor("OUTPUT0", array)]) for array in given]
"""
# Gives its input back, and one more where a sequence begins.
SEQUENCE = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            given, start = (pb.get_input_tensor_by_name(request, name).as_numpy()
                            for name in ("INPUT", "START"))
            answers.append(pb.InferenceResponse([pb.Tensor("OUTPUT", given + start)]))
        return answers
"""
REPEAT = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            given = pb.get_input_tensor_by_name(request, "IN").as_numpy()
            for index, value in enumerate(given):
                sender.send(pb.InferenceResponse([
                    pb.Tensor("OUT", np.array([value], np.int32)),
                    pb.Tensor("IDX", np.array([index], np.uint32))]))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
IMAGE = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        found = pb.Tensor("probabilities", np.array([[0.1, 0.7, 0.2]], np.float32))
        return [pb.InferenceResponse([found]) for request in requests]
"""
PAIR = """max_batch_size: 8
input [{{ name: "INPUT0" data_type: {0} dims: [16] }},
       {{ name: "INPUT1" data_type: {0} dims: [16] }}]
output [{{ name: "OUTPUT0" data_type: {0} dims: [16] }},
        {{ name: "OUTPUT1" data_type: {0} dims: [16] }}]
"""
MODELS = {
    "simple": (SIMPLE, PAIR.format("TYPE_INT32")),
    "simple_string": (STRING, PAIR.format("TYPE_STRING")),
    "simple_identity": (
        IDENTITY,
        """max_batch_size: 8 input [{ name: "INPUT0" data_type: TYPE_STRING dims: [-1] }]
        output [{ name: "OUTPUT0" data_type: TYPE_STRING dims: [-1] }]""",
    ),
    "simple_sequence": (
        SEQUENCE,
        """max_batch_size: 8 input [{ name: "INPUT" data_type: TYPE_INT32 dims: [1] }]
        output [{ name: "OUTPUT" data_type: TYPE_INT32 dims: [1] }]
        sequence_batching { max_sequence_idle_microseconds: 5000000 control_input [
          { name: "START" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }] },
          { name: "READY" control [{ kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] }] }
        ] }""",
    ),
    "repeat_int32": (
        REPEAT,
        """max_batch_size: 0 model_transaction_policy { decoupled: true }
        input [{ name: "IN" data_type: TYPE_INT32 dims: [-1] },
               { name: "DELAY" data_type: TYPE_UINT32 dims: [-1] },
               { name: "WAIT" data_type: TYPE_UINT32 dims: [1] }]
        output [{ name: "OUT" data_type: TYPE_INT32 dims: [1] },
                { name: "IDX" data_type: TYPE_UINT32 dims: [1] }]""",
    ),
    "image": (
        IMAGE,
        """max_batch_size: 4
        input [{ name: "pixels" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [3, 8, 8] }]
        output [{ name: "probabilities" data_type: TYPE_FP32 dims: [3]
                  label_filename: "labels.txt" }]""",
    ),
}

NUMBERS = np.arange(16, dtype=np.int32).reshape(1, 16)
ONES = np.ones((1, 16), np.int32)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    repository = tmp_path_factory.mktemp("models")
    for name, (code, config) in MODELS.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(code)
        (repository / name / "config.pbtxt").write_text(f'backend: "python"\n{config}')
    (repository / "image" / "labels.txt").write_text("cat\ndog\nfish\n")
    with BackgroundStack(f"--repository={repository}", "--no-otlp") as running:
        yield Fleet(running)


@pytest.fixture(params=[triton_grpc, triton_http], ids=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture
def client(stack: Fleet, protocol: ModuleType) -> Iterator[Any]:
    address = stack.router_grpc if protocol is triton_grpc else stack.router_http
    with protocol.InferenceServerClient(address) as made:
        yield made


def pair(protocol: ModuleType, *arrays: np.ndarray, **more: Any) -> list[Any]:
    """Return INPUT0 and INPUT1. `more` is for `set_data_from_numpy`."""
    kind = "BYTES" if arrays[0].dtype == np.object_ else "INT32"
    made = []
    for number, array in enumerate(arrays):
        tensor = protocol.InferInput(f"INPUT{number}", array.shape, kind)
        tensor.set_data_from_numpy(array, **more)
        made.append(tensor)
    return made


def check_simple(result: Any) -> None:
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), NUMBERS + ONES)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), NUMBERS - ONES)


def wanted(protocol: ModuleType, *names: str, **more: Any) -> list[Any]:
    return [protocol.InferRequestedOutput(name, **more) for name in names]


# --- plain requests -------------------------------------------------------------------------------


def test_simple_infer(client: Any, protocol: ModuleType) -> None:
    """simple_{grpc,http}_infer_client: headers, query parameters, compression, and statistics."""
    inputs = pair(protocol, NUMBERS, ONES)
    outputs = wanted(protocol, "OUTPUT0", "OUTPUT1")
    names = (
        ("compression_algorithm",)
        if protocol is triton_grpc
        else ("request_compression_algorithm", "response_compression_algorithm")
    )
    for algorithm in (None, "gzip", "deflate"):
        more = dict.fromkeys(names, algorithm)
        headers = {"test": "1"}
        check_simple(client.infer("simple", inputs, outputs=outputs, headers=headers, **more))
    only = client.infer("simple", inputs, outputs=outputs[:1])
    assert only.as_numpy("OUTPUT1") is None
    if protocol is triton_http:
        parameters = {"test_1": 1, "test_2": ["a", 2]}
        check_simple(client.infer("simple", inputs, outputs=outputs, query_params=parameters))
        assert len(client.get_inference_statistics("simple")["model_stats"]) == 1
    else:
        assert len(client.get_inference_statistics("simple").model_stats) == 1


def test_tensors_in_json(stack: Fleet) -> None:
    """simple_http_infer_client sends one input in JSON and the other in binary, and asks for one
    output of each kind."""
    with triton_http.InferenceServerClient(stack.router_http) as client:
        first = pair(triton_http, NUMBERS, binary_data=False)[0]
        second = pair(triton_http, NUMBERS, ONES, binary_data=True)[1]
        outputs = [
            triton_http.InferRequestedOutput("OUTPUT0", binary_data=True),
            triton_http.InferRequestedOutput("OUTPUT1", binary_data=False),
        ]
        check_simple(client.infer("simple", [first, second], outputs=outputs))
        check_simple(client.infer("simple", pair(triton_http, NUMBERS, ONES, binary_data=False)))


def test_async_infer(client: Any, protocol: ModuleType) -> None:
    """simple_{grpc,http}_async_infer_client."""
    inputs = pair(protocol, NUMBERS, ONES)
    if protocol is triton_http:
        waiting = [client.async_infer("simple", inputs) for _ in range(4)]
        for one in waiting:
            check_simple(one.get_result())
        return
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for _ in range(4):
        client.async_infer("simple", inputs, lambda result, error: answers.put((result, error)))
    for _ in range(4):
        result, error = answers.get(timeout=30)
        assert error is None
        check_simple(result)


async def test_asyncio(stack: Fleet, protocol: ModuleType) -> None:
    """simple_{grpc,http}_aio_infer_client."""
    if protocol is triton_grpc:
        import tritonclient.grpc.aio as aio

        address = stack.router_grpc
    else:
        import tritonclient.http.aio as aio

        address = stack.router_http
    async with aio.InferenceServerClient(address) as client:
        check_simple(await client.infer("simple", pair(protocol, NUMBERS, ONES)))


def test_string_infer(client: Any, protocol: ModuleType) -> None:
    """simple_{grpc,http}_string_infer_client."""
    texts = [
        np.array([str(x).encode() for x in array.ravel()], np.object_).reshape(1, 16)
        for array in (NUMBERS, ONES)
    ]
    result = client.infer("simple_string", pair(protocol, *texts))
    assert [int(x) for x in result.as_numpy("OUTPUT0").ravel()] == list(range(1, 17))
    assert [int(x) for x in result.as_numpy("OUTPUT1").ravel()] == list(range(-1, 15))
    if protocol is triton_http:
        in_json = pair(protocol, *texts, binary_data=False)
        result = client.infer("simple_string", in_json)
        assert [int(x) for x in result.as_numpy("OUTPUT0").ravel()] == list(range(1, 17))


def test_reused_objects_and_growth(client: Any, protocol: ModuleType) -> None:
    """reuse_infer_objects_client and memory_growth_test: the same objects, again and again."""
    inputs, outputs = pair(protocol, NUMBERS, ONES), wanted(protocol, "OUTPUT0", "OUTPUT1")
    for _ in range(50):
        check_simple(client.infer("simple", inputs, outputs=outputs))
    for tensor, array in zip(inputs, (ONES, NUMBERS), strict=True):
        tensor.set_data_from_numpy(array)
    again = client.infer("simple", inputs, outputs=outputs)
    np.testing.assert_array_equal(again.as_numpy("OUTPUT1"), ONES - NUMBERS)


@pytest.mark.parametrize("keep", ["keepalive", "custom"])
def test_channels(stack: Fleet, keep: str) -> None:
    """simple_grpc_keepalive_client and simple_grpc_custom_args_client."""
    more: dict[str, Any] = {
        "keepalive_options": triton_grpc.KeepAliveOptions(
            keepalive_time_ms=2**31 - 1,
            keepalive_timeout_ms=20_000,
            keepalive_permit_without_calls=False,
            http2_max_pings_without_data=2,
        )
    }
    if keep == "custom":
        more = {"channel_args": [("grpc.primary_user_agent", "shoal-test")]}
    with triton_grpc.InferenceServerClient(stack.router_grpc, **more) as client:
        check_simple(client.infer("simple", pair(triton_grpc, NUMBERS, ONES)))


# --- shared memory --------------------------------------------------------------------------------


def test_shared_memory(client: Any, protocol: ModuleType) -> None:
    """simple_{grpc,http}_shm_client."""
    client.unregister_system_shared_memory()
    size = NUMBERS.nbytes
    regions = {}
    name = protocol.__name__.rpartition(".")[2]
    try:
        for kind in ("input", "output"):
            key = f"/shoal_{name}_{kind}_data"
            regions[kind] = shared_memory.create_shared_memory_region(kind, key, 2 * size)
            client.register_system_shared_memory(kind, key, 2 * size)
        shared_memory.set_shared_memory_region(regions["input"], [NUMBERS, ONES])
        inputs, outputs = [], []
        for number in range(2):
            tensor = protocol.InferInput(f"INPUT{number}", [1, 16], "INT32")
            tensor.set_shared_memory("input", size, offset=number * size)
            inputs.append(tensor)
            output = protocol.InferRequestedOutput(f"OUTPUT{number}")
            output.set_shared_memory("output", size, offset=number * size)
            outputs.append(output)
        result = client.infer("simple", inputs, outputs=outputs)
        for number, expected in enumerate((NUMBERS + ONES, NUMBERS - ONES)):
            assert result.get_output(f"OUTPUT{number}") is not None
            found = shared_memory.get_contents_as_numpy(
                regions["output"], np.int32, [1, 16], offset=number * size
            )
            np.testing.assert_array_equal(found, expected)
        client.unregister_system_shared_memory()
        status = client.get_system_shared_memory_status()
        assert not (status if protocol is triton_http else status.regions)
    finally:
        for region in regions.values():
            shared_memory.destroy_shared_memory_region(region)


def test_cuda_memory_where_there_is_none(client: Any) -> None:
    """simple_{grpc,http}_cudashm_client: the first calls, and the text without a GPU."""
    client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException) as refused:
        client.register_cuda_shared_memory("output_data", b"AAAA", 0, 64)
    assert "failed to register" in refused.value.message().lower()


# --- sequences and decoupled models ---------------------------------------------------------------


def number(protocol: ModuleType, value: int) -> list[Any]:
    tensor = protocol.InferInput("INPUT", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.full([1, 1], value, np.int32))
    return [tensor]


@pytest.mark.parametrize("names", [(1007, 1008), ("a-1007", "a-1008")], ids=["numbers", "texts"])
def test_sequences_one_by_one(client: Any, protocol: ModuleType, names: tuple[Any, Any]) -> None:
    """simple_{grpc,http}_sequence_sync_infer_client: two sequences at a time."""
    found: list[list[int]] = [[], []]
    values = [0, 11, 7, 5]
    for at, value in enumerate(values):
        for which, name in enumerate(names):
            result = client.infer(
                "simple_sequence",
                number(protocol, value if which == 0 else -value),
                sequence_id=name,
                sequence_start=at == 0,
                sequence_end=at == len(values) - 1,
            )
            found[which].append(int(result.as_numpy("OUTPUT").item()))
    assert found == [[1, 11, 7, 5], [1, -11, -7, -5]]


def test_sequences_in_a_stream(stack: Fleet) -> None:
    """simple_grpc_sequence_stream_infer_client."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    values = [0, 11, 7, 5]
    with triton_grpc.InferenceServerClient(stack.router_grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for sequence in (2007, 2008):
            for at, value in enumerate(values):
                client.async_stream_infer(
                    "simple_sequence",
                    number(triton_grpc, value),
                    request_id=f"{sequence}_{at}",
                    sequence_id=sequence,
                    sequence_start=at == 0,
                    sequence_end=at == len(values) - 1,
                )
        found: dict[str, list[int]] = {"2007": [], "2008": []}
        for _ in range(2 * len(values)):
            result, error = answers.get(timeout=30)
            assert error is None
            found[result.get_response().id.partition("_")[0]].append(
                int(result.as_numpy("OUTPUT").item())
            )
        client.stop_stream()
    assert found == {"2007": [1, 11, 7, 5], "2008": [1, 11, 7, 5]}


def test_custom_repeat(stack: Fleet) -> None:
    """simple_grpc_custom_repeat: as many replies as numbers, and the order within each request."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    repeats, requests = 10, 3
    with triton_grpc.InferenceServerClient(stack.router_grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for offset in range(requests):
            tensors = []
            for name, array in (
                ("IN", np.arange(offset, offset + repeats, dtype=np.int32)),
                ("DELAY", np.ones(repeats, np.uint32)),
                ("WAIT", np.array([5], np.uint32)),
            ):
                kind = "INT32" if name == "IN" else "UINT32"
                tensor = triton_grpc.InferInput(name, array.shape, kind)
                tensor.set_data_from_numpy(array)
                tensors.append(tensor)
            client.async_stream_infer("repeat_int32", tensors, request_id=str(offset))
        found: dict[str, list[tuple[int, int]]] = {}
        for _ in range(repeats * requests):
            result, error = answers.get(timeout=30)
            assert error is None
            pair_ = (int(result.as_numpy("OUT").item()), int(result.as_numpy("IDX").item()))
            found.setdefault(result.get_response().id, []).append(pair_)
        client.stop_stream()
    assert found == {
        str(offset): [(offset + at, at) for at in range(repeats)] for offset in range(requests)
    }


# --- what they ask about the server and its models ------------------------------------------------


def test_health_and_metadata(client: Any, protocol: ModuleType) -> None:
    """simple_{grpc,http}_health_metadata."""
    assert client.is_server_live(headers={"test": "1", "dummy": "2"})
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    server, model = client.get_server_metadata(), client.get_model_metadata("simple")
    if protocol is triton_http:
        assert (server["name"], model["name"]) == ("triton", "simple")
    else:
        assert (server.name, model.name) == ("triton", "simple")
    with pytest.raises(InferenceServerException) as refused:
        client.get_model_metadata("wrong_model_name")
    assert refused.value.message().startswith("Request for unknown model")


def test_model_control(client: Any) -> None:
    """simple_{grpc,http}_model_control."""
    client.load_model("simple")
    assert client.is_model_ready("simple")
    client.unload_model("simple")
    assert client.is_model_ready("simple"), "other than with a Triton: the next request loads it"
    with pytest.raises(InferenceServerException) as refused:
        client.load_model("wrong_model_name")
    assert "failed to load" in refused.value.message()


def test_image_client(client: Any, protocol: ModuleType) -> None:
    """image_client: what it reads from metadata and config, and three classes by their labels."""
    metadata, config = client.get_model_metadata("image"), client.get_model_config("image")
    if protocol is triton_http:
        (given,), (got,) = metadata["inputs"], metadata["outputs"]
        assert len(config["input"]) == 1
        assert (given["name"], given["datatype"], list(map(int, given["shape"]))) == (
            *("pixels", "FP32"),
            [-1, 3, 8, 8],
        )
        assert (config["max_batch_size"], config["input"][0]["format"]) == (4, "FORMAT_NCHW")
        name = got["name"]
    else:
        config = config.config
        (given,), (got,) = metadata.inputs, metadata.outputs
        assert (given.name, given.datatype, list(given.shape)) == ("pixels", "FP32", [-1, 3, 8, 8])
        assert len(config.input) == 1
        assert (config.max_batch_size, config.input[0].format) == (4, 2)
        name = got.name
    tensor = protocol.InferInput("pixels", [1, 3, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3, 8, 8), np.float32))
    outputs = wanted(protocol, name, class_count=3)
    found = client.infer("image", [tensor], outputs=outputs).as_numpy(name)
    rows = [one.decode().split(":") for one in found.ravel()]
    assert [row[2] for row in rows] == ["dog", "fish", "cat"]


def test_explicit_bytes(stack: Fleet) -> None:
    """grpc_explicit_byte_content_client: elements of BYTES, each with its length before it."""
    texts = (b"one", b"", b"\x00\xff")
    raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    service = triton_grpc.service_pb2
    request = service.ModelInferRequest(model_name="simple_identity")
    request.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 3])
    request.raw_input_contents.append(raw)
    assert stack.inference.ModelInfer(request, timeout=30).raw_output_contents[0] == raw
    request = service.ModelInferRequest(model_name="simple_identity")
    explicit = request.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 3])
    explicit.contents.bytes_contents.extend(texts)
    assert stack.inference.ModelInfer(request, timeout=30).raw_output_contents[0] == raw


def test_explicit_numbers(stack: Fleet) -> None:
    """grpc_explicit_int_content_client: elements of INT32 as numbers of protobuf."""
    request = triton_grpc.service_pb2.ModelInferRequest(model_name="simple")
    for number_, array in enumerate((NUMBERS, ONES)):
        made = request.inputs.add(name=f"INPUT{number_}", datatype="INT32", shape=[1, 16])
        made.contents.int_contents.extend(array.ravel().tolist())
    answer = stack.inference.ModelInfer(request, timeout=30)
    assert answer.raw_output_contents[0] == (NUMBERS + ONES).tobytes()
