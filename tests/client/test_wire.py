"""shoal.client reads and writes what Triton's own messages hold, and lives beside tritonclient."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.grpc import InferResult, model_config_pb2, service_pb2
from tritonclient.utils import np_to_triton_dtype

from shoal.client import Internal, Request, wire
from shoal.client.inference import result
from shoal.client.tensors import decoded, encoded

ROOT = Path(__file__).resolve().parents[2]

KINDS = [np.dtype(bool), *(np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8))]
KINDS += [np.dtype(f"f{size}") for size in (2, 4, 8)]

shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
numbers = st.sampled_from(KINDS).flatmap(lambda kind: npst.arrays(kind, shapes))
texts = npst.arrays(object, shapes, elements=st.binary(max_size=20), fill=st.nothing())


def response(**outputs: tuple[str, Any, bytes]) -> bytes:
    made = service_pb2.ModelInferResponse(model_name="m", model_version="1")
    for name, (datatype, shape, raw) in outputs.items():
        made.outputs.add(name=name, datatype=datatype, shape=shape)
        made.raw_output_contents.append(raw)
    return bytes(made.SerializeToString())


@given(st.dictionaries(st.text(max_size=5), numbers | texts, max_size=4))
def test_a_request_is_what_triton_reads(inputs: dict[str, Any]) -> None:
    request = service_pb2.ModelInferRequest.FromString(Request("m", inputs, 2).serialized())
    assert (request.model_name, request.model_version) == ("m", "2")
    assert [tensor.name for tensor in request.inputs] == list(inputs)
    # tritonclient reads it back.
    echo = service_pb2.ModelInferResponse(raw_output_contents=request.raw_input_contents)
    for tensor in request.inputs:
        echo.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    read = InferResult(echo)
    for tensor, array in zip(request.inputs, inputs.values(), strict=True):
        assert tensor.datatype == np_to_triton_dtype(array.dtype)
        np.testing.assert_array_equal(read.as_numpy(tensor.name), array)


@given(st.dictionaries(st.text(max_size=5), numbers | texts, max_size=4))
def test_an_answer_comes_back_as_it_was(outputs: dict[str, Any]) -> None:
    tensors = {name: encoded(name, array) for name, array in outputs.items()}
    made = response(
        **{name: (one.datatype, one.shape, bytes(one.data)) for name, one in tensors.items()}
    )
    found = result(made).outputs
    assert list(found) == list(outputs)
    for name, array in outputs.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable


def test_numpys_many_ways_to_hold_the_same() -> None:
    table = np.arange(12, dtype=np.int32).reshape(3, 4)
    for array in (table.T, table[::2, 1:], table.astype(">i4"), np.asfortranarray(table)):
        tensor = encoded("A", array)
        back = decoded(tensor.datatype, tensor.shape, memoryview(bytes(tensor.data)))
        np.testing.assert_array_equal(back, array)
    assert encoded("A", [[1.5]])[:2] == ("FP64", (1, 1))
    assert encoded("A", 3)[:2] == ("INT64", ())
    assert encoded("A", b"ends with zero\0").data == b"\x0f\0\0\0ends with zero\0"
    assert encoded("A", ["a", "é"]).data == b"\1\0\0\0a\2\0\0\0\xc3\xa9"


def test_bf16() -> None:
    array = np.array([1.5, -2], ml_dtypes.bfloat16)
    tensor = encoded("A", array)
    assert (tensor.datatype, bytes(tensor.data)) == ("BF16", array.tobytes())
    back = decoded("BF16", (2,), memoryview(bytes(tensor.data)))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("offset", range(8))
def test_no_copy_where_none_is_needed(offset: int) -> None:
    whole = bytearray(offset + 64)
    base = np.frombuffer(whole, np.uint8).__array_interface__["data"][0]
    array = decoded("FP64", (8,), memoryview(whole)[offset:])
    assert array.flags.aligned
    assert np.shares_memory(array, np.frombuffer(whole, np.uint8)) == ((base + offset) % 8 == 0)


@pytest.mark.parametrize(
    ("shape", "raw"), [((2,), b"\1\0\0\0a"), ((1,), b"\1\0\0"), ((1,), b"\2\0\0\0a")]
)
def test_byte_strings_that_do_not_fit(shape: tuple[int, ...], raw: bytes) -> None:
    with pytest.raises(Internal, match="cannot be read"):
        result(response(A=("BYTES", shape, raw)))


def test_a_datatype_that_is_not_known() -> None:
    with pytest.raises(Internal, match="FP4"):
        result(response(A=("FP4", (1,), b"\0")))


SAMPLE = response(A=("FP32", (2,), b"\0" * 8), B=("BYTES", (1,), b"\1\0\0\0a"))


@given(st.data())
def test_damaged_answers_are_read_as_protobuf_reads_them_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(SAMPLE) - 1))] = data.draw(st.integers(0, 255))
    answer = bytes(damaged[: data.draw(st.integers(0, len(SAMPLE)))])
    try:
        head, raw = wire.response_parts(answer)
    except DecodeError:
        return
    whole = service_pb2.ModelInferResponse.FromString(answer)
    assert [bytes(one) for one in raw] == list(whole.raw_output_contents)
    whole.ClearField("raw_output_contents")
    assert head.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


def test_a_streams_answer() -> None:
    inner = service_pb2.ModelInferResponse.FromString(SAMPLE)
    both = service_pb2.ModelStreamInferResponse(error_message="no", infer_response=inner)
    error, content = wire.stream_parts(both.SerializeToString())
    assert (error, bytes(content)) == ("no", SAMPLE)
    assert wire.stream_parts(b"") == ("", memoryview(b""))


# --- the descriptors ------------------------------------------------------------------------------


def test_the_descriptors_are_those_of_the_protos(tmp_path: Path) -> None:
    made = tmp_path / "made.binpb"
    buf = Path(sys.executable).with_name("buf")
    options = ["--as-file-descriptor-set", "--exclude-source-info", "-o", str(made)]
    subprocess.run([buf, "build", ROOT / "third_party" / "triton", *options], check=True)
    assert made.read_bytes() == wire.DESCRIPTORS.read_bytes()


def fields(file: descriptor_pb2.FileDescriptorProto) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = set()

    def read(prefix: str, kinds: Any) -> None:
        for kind in kinds:
            name = f"{prefix}.{kind.name}"
            found.update((name, one.name, one.number, one.type, one.label) for one in kind.field)
            read(name, kind.nested_type)

    read("", file.message_type)
    return found


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("grpc_service.proto", service_pb2.DESCRIPTOR),
        ("model_config.proto", model_config_pb2.DESCRIPTOR),
    ],
)
def test_tritonclients_messages_have_the_same_numbers(name: str, theirs: Any) -> None:
    raw = wire.DESCRIPTORS.read_bytes()
    files = {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file}
    published = descriptor_pb2.FileDescriptorProto()
    theirs.CopyToProto(published)
    assert fields(published) <= fields(files[name])


@pytest.mark.parametrize("implementation", ["upb", "python"])
@pytest.mark.parametrize("first", ["shoal", "tritonclient"])
def test_both_clients_in_one_program(first: str, implementation: str) -> None:
    ours = (
        "from shoal.client import Request\n"
        "from shoal.client.inference import result\n"
        "Request('m', {'A': [1]}).serialized()\n"
        "result(b'')\n"
    )
    theirs = "from tritonclient.grpc import InferInput, service_pb2\n"
    after = (
        "message = Request('m', {'A': [1]}).serialized()\n"
        "assert service_pb2.ModelInferRequest.FromString(message).model_name == 'm'\n"
    )
    code = (ours + theirs if first == "shoal" else theirs + ours) + after
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
