"""shoal_probe.json: how it is read, and what is refused."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.grpc.service_pb2 import ModelInferRequest
from tritonclient.utils import deserialize_bytes_tensor

from services.registry.artifacts import probe
from services.registry.artifacts.probe import PROBE_FILE
from services.registry.artifacts.scan import open_source, scan_version
from services.registry.formats.config import parse_config
from services.registry.formats.refusal import Unservable
from shoal.registry.v1 import types_pb2 as types
from tests.support.registry import (
    PYTHON_CODE,
    TENSORS,
    ensemble,
    python_model,
    refusal,
    registry,
    tree_of,
)
from tests.support.triton_direct import ROOT, triton_direct

on_both = pytest.mark.usefixtures("database")

Probe = dict[str, Any]


def tensor(name: str = "IN", **fields: Any) -> Probe:
    return {"name": name, "shape": [1], "datatype": "FP32", "data": [1.5], **fields}


def body(*inputs: Probe, **fields: Any) -> Probe:
    return {"inputs": list(inputs or (tensor(),)), **fields}


def config(text: str = TENSORS) -> ModelConfig:
    return parse_config(text)


def read(content: Probe | bytes, text: str = TENSORS) -> ModelInferRequest:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return ModelInferRequest.FromString(probe.read(raw, config(text)))


def refused(content: Probe | bytes, text: str = TENSORS) -> str:
    with pytest.raises(Unservable) as caught:
        read(content, text)
    said = str(caught.value)
    assert said.startswith("shoal_probe.json: ")
    return said.removeprefix("shoal_probe.json: ")


def typed(datatype: str, dims: str = "-1", more: str = "") -> str:
    return (
        f'{more} input {{ name: "IN" data_type: TYPE_{datatype} dims: [ {dims} ] }}\n'
        'output { name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] }'
    )


# --- the request ----------------------------------------------------------------------------------


def test_a_probe_becomes_a_request() -> None:
    request = read(
        body(
            id="p",
            parameters={"deep": True, "count": 3, "share": 0.5, "mode": "x"},
            outputs=[{"name": "OUT"}],
        )
    )
    assert (request.model_name, request.model_version, request.id) == ("", "", "p")
    (given,) = request.inputs
    assert (given.name, given.datatype, list(given.shape)) == ("IN", "FP32", [1])
    assert list(request.raw_input_contents) == [np.float32(1.5).tobytes()]
    assert [output.name for output in request.outputs] == ["OUT"]
    assert request.parameters["deep"].bool_param is True
    assert request.parameters["count"].int64_param == 3
    assert request.parameters["share"].double_param == 0.5
    assert request.parameters["mode"].string_param == "x"


@pytest.mark.parametrize(
    ("datatype", "data", "dtype"),
    [
        ("BOOL", [True, False], np.bool_),
        ("UINT8", [0, 255], np.uint8),
        ("UINT16", [0, 65535], np.uint16),
        ("UINT32", [0, 2**32 - 1], np.uint32),
        ("UINT64", [0, 2**64 - 1], np.uint64),
        ("INT8", [-128, 127], np.int8),
        ("INT16", [-(2**15), 2**15 - 1], np.int16),
        ("INT32", [-(2**31), 2**31 - 1], np.int32),
        ("INT64", [-(2**63), 2**63 - 1], np.int64),
        ("FP16", [0.5, -2], np.float16),
        ("FP32", [1, 1e38], np.float32),
        ("FP64", [1, 1e300], np.float64),
        ("BF16", [1.5, -2.0], ml_dtypes.bfloat16),
    ],
)
def test_numbers_are_laid_out_as_triton_takes_them(
    datatype: str, data: list[Any], dtype: Any
) -> None:
    request = read(body(tensor(shape=[2], datatype=datatype, data=data)), typed(datatype))
    found = np.frombuffer(request.raw_input_contents[0], dtype=dtype)
    assert found.tolist() == np.array(data, dtype=dtype).tolist()


def test_strings_are_laid_out_as_triton_takes_them() -> None:
    texts = ["a", "", "été"]
    request = read(body(tensor(shape=[3], datatype="BYTES", data=texts)), typed("STRING"))
    found = deserialize_bytes_tensor(request.raw_input_contents[0])
    assert [one.decode() for one in found] == texts
    empty = read(body(tensor(shape=[0], datatype="BYTES", data=[])), typed("STRING"))
    assert list(empty.raw_input_contents) == [b""]


def test_data_is_flat_or_nested_as_its_shape() -> None:
    flat = [1, 2, 3, 4, 5, 6]
    requests = [
        read(body(tensor(shape=[1, 2, 3], data=data)), typed("FP32", "-1, 3", "max_batch_size: 8"))
        for data in (flat, [[[1, 2, 3], [4, 5, 6]]])
    ]
    assert requests[0] == requests[1]
    for data in ([[1, 2, 3], [4, 5, 6]], [[[1, 2], [3, 4], [5, 6]]], [[[1, 2, 3], 4, 5, 6]]):
        said = refused(
            body(tensor(shape=[1, 2, 3], data=data)), typed("FP32", "-1, 3", "max_batch_size: 8")
        )
        assert said == "input 'IN': its data is not nested as [1, 2, 3]"


def test_optional_inputs_may_be_left_out() -> None:
    optional = 'input { name: "MORE" data_type: TYPE_FP32 dims: [ 1 ] optional: true }\n'
    assert len(read(body(), TENSORS + optional).inputs) == 1
    assert len(read(body(tensor(), tensor("MORE")), TENSORS + optional).inputs) == 2
    needed = optional.replace("optional: true", "")
    assert refused(body(), TENSORS + needed) == "the input 'MORE' is missing"


BATCHED = "max_batch_size: 4" + TENSORS


@pytest.mark.parametrize(
    ("content", "text", "said"),
    [
        (b"", TENSORS, "Invalid JSON: EOF"),
        (b"{", TENSORS, "Invalid JSON: EOF"),
        (b"[]", TENSORS, "Input should be an object"),
        (b"\xff", TENSORS, "Invalid JSON"),
        (b'{"inputs": ' + b"[" * 5000, TENSORS, "Invalid JSON: recursion limit"),
        ({}, TENSORS, "'inputs': Field required"),
        ({"inputs": [], "model_name": "m"}, TENSORS, "'model_name': Extra inputs are not"),
        ({"inputs": [{"name": "IN"}]}, TENSORS, "'inputs.0.shape': Field required"),
        (body(tensor(shape=[-1])), TENSORS, "'inputs.0.shape.0': Input should be greater"),
        (body(tensor(shape=[True])), TENSORS, "'inputs.0.shape.0': Input should be a valid int"),
        (body(tensor(shape=[2**63])), TENSORS, "'inputs.0.shape.0': Input should be less"),
        (body(tensor(parameters={})), TENSORS, "'inputs.0.parameters': Extra inputs are not"),
        (body(parameters={"a": 10**400}), TENSORS, "'parameters.a."),
        (body(parameters={"a": []}), TENSORS, "'parameters.a."),
        ({"inputs": []}, TENSORS, "the input 'IN' is missing"),
        (body(tensor("X")), TENSORS, "there is no input 'X'; the config has: IN"),
        (body(outputs=[{"name": "X"}]), TENSORS, "there is no output 'X'; the config has: OUT"),
        (body(tensor(), tensor()), TENSORS, "an input is given twice"),
        (body(tensor(datatype="FP64")), TENSORS, "input 'IN' is 'FP64', the config says 'FP32'"),
        (
            body(tensor(datatype="STRING", data=["a"])),
            typed("STRING"),
            "input 'IN' is 'STRING', the config says 'BYTES'",
        ),
        (body(tensor(shape=[2])), TENSORS, "input 'IN' has shape [2], the config says [1]"),
        (body(tensor(shape=[1, 1])), TENSORS, "input 'IN' has shape [1, 1], the config says [1]"),
        (body(tensor(shape=[1])), BATCHED, "input 'IN' has shape [1], the config says [batch, 1]"),
        (body(tensor(shape=[0, 1], data=[])), BATCHED, "input 'IN' has a batch of 0, the config's"),
        (
            body(tensor(shape=[5, 1], data=[1] * 5)),
            BATCHED,
            "input 'IN' has a batch of 5, the config's max_batch_size says 1 to 4",
        ),
        (
            body(tensor(data=[1, 2])),
            TENSORS,
            "input 'IN' has 2 elements, its shape [1] says 1",
        ),
        (
            body(tensor(data=["1"])),
            TENSORS,
            "input 'IN' has an element of type str; elements of FP32 are int or float",
        ),
        (body(tensor(data=[True])), TENSORS, "input 'IN' has an element of type bool"),
        (body(tensor(data=[1e39])), TENSORS, "input 'IN' has an unusable element: overflow"),
        (body(tensor(data=[10**400])), TENSORS, "input 'IN' has an unusable element: int too"),
        (
            body(tensor(datatype="INT8", data=[1.0])),
            typed("INT8"),
            "input 'IN' has an element of type float; elements of INT8 are int",
        ),
        (
            body(tensor(datatype="INT8", data=[128])),
            typed("INT8"),
            "input 'IN' has an unusable element: Python integer 128 out of bounds",
        ),
        (
            body(tensor(shape=[20000], data=[0] * 20000)),
            typed("FP32"),
            "its inputs take 80021 bytes, more than 65536: give smaller ones, or use model_warmup",
        ),
        (
            body(),
            "model_transaction_policy { decoupled: true }" + TENSORS,
            "its config is decoupled, and a probe has one answer: remove the file",
        ),
    ],
)
def test_what_is_wrong_is_said(content: Probe | bytes, text: str, said: str) -> None:
    assert refused(content, text).startswith(said)


def test_a_reason_is_one_that_can_be_kept() -> None:
    for content in (
        json.dumps({"inputs": [], "\0" * 10_000: 1}).encode(),
        json.dumps(body(tensor("\0" * 10_000))).encode(),
        json.dumps(body(tensor(datatype="\ud800"))).encode(),
    ):
        said = refused(content)
        assert "\0" not in said
        assert len(said.encode()) < 2000


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["IN", "X"]),
        "shape": st.lists(st.integers(-1, 3), max_size=2) | anything,
        "datatype": st.sampled_from(["FP32", "INT8", "BYTES", "BF16"]) | anything,
        "data": st.lists(st.integers() | st.floats(), max_size=3) | anything,
    },
)


@given(
    st.fixed_dictionaries({"inputs": st.lists(tensors, max_size=2) | anything}) | anything,
    st.sampled_from(["FP32", "INT8", "STRING", "BF16"]),
)
def test_anything_is_read_or_refused(content: Any, datatype: str) -> None:
    raw = json.dumps(content).encode()
    with contextlib.suppress(Unservable):
        request = read(raw, typed(datatype))
        assert [one.name for one in request.inputs] == ["IN"]
        assert len(request.raw_input_contents) == 1


# --- the file -------------------------------------------------------------------------------------


def put(folder: Path, number: float | None) -> None:
    """A probe that asks for `number`; None takes it away."""
    path = folder / PROBE_FILE
    if number is None:
        path.unlink()
    else:
        path.write_text(json.dumps(body(tensor(data=[number]))))


def asked(version: types.ModelVersion) -> float | None:
    if not version.probe:
        return None
    (content,) = ModelInferRequest.FromString(version.probe).raw_input_contents
    return float(np.frombuffer(content, np.float32)[0])


@on_both
async def test_the_version_s_own_wins_over_the_model_s(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m", (1, 2))
    put(model, 10)
    put(model / "2", 2)
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        assert asked(await known.version("m:1")) == 10
        assert asked(await known.version("m:2")) == 2
        bare = await known.register("n", shutil.copytree(model / "2", tmp_path / "bare"))
        assert (bare.state, bare.invalid_reason) == (
            types.VERSION_STATE_INVALID,
            "config.pbtxt lists no output: name the model's inputs and outputs there, "
            "because servers do not ask the model for them",
        )
        shutil.copy(model / "config.pbtxt", tmp_path / "bare")
        assert asked(await known.register("n", tmp_path / "bare")) == 2


@on_both
async def test_an_ensemble_has_one_too(tmp_path: Path) -> None:
    python_model(tmp_path / "repo", "part")
    put(ensemble(tmp_path / "repo", "e", ["part"]), 3)
    shutil.rmtree(tmp_path / "repo" / "e" / "1")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        version = await known.version("e:1")
        assert (asked(version), version.state) == (3, types.VERSION_STATE_APPROVED)


@on_both
async def test_it_is_no_file_of_the_model(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m", (1, 2))
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        before, staged = await known.version("m:1"), tree_of(known.staging)
        put(model, 1)
        put(model / "2", 2)
        await known.import_(tmp_path / "repo")
        after = await known.version("m:1")
        assert after.probe
        assert after.artifact_bytes == before.artifact_bytes == len(PYTHON_CODE)
        assert after.config_digest == before.config_digest
        assert tree_of(known.staging / "m") == {
            **{
                path.removeprefix("m/"): found
                for path, found in staged.items()
                if path.startswith("m/")
            },
            ".": staged["m"],
        }
        assert not list(known.staging.rglob(PROBE_FILE))


@on_both
async def test_a_changed_probe_is_another_fingerprint(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        seen = [(await known.version("m:1")).fingerprint]
        for number in (1, 2, None):
            put(model, number)
            await known.import_(tmp_path / "repo")
            version = await known.version("m:1")
            assert asked(version) == number
            seen.append(version.fingerprint)
        assert seen[0] == seen[3]
        assert len(set(seen)) == 3
        revision = await known.revision()
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        assert await known.revision() == revision


@on_both
async def test_a_bad_one_makes_the_version_invalid_until_it_is_mended(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m", (1, 2))
    (model / "2" / PROBE_FILE).write_text(json.dumps(body(tensor("X"))))
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        bad = await known.version("m:2")
        assert bad.state == types.VERSION_STATE_INVALID
        assert bad.invalid_reason == ("shoal_probe.json: there is no input 'X'; the config has: IN")
        assert (await known.model("m")).default_version == 1
        put(model / "2", 2)
        await known.import_(tmp_path / "repo")
        assert (await known.model("m")).default_version == 2


@on_both
async def test_one_that_is_no_file_or_too_large(tmp_path: Path) -> None:
    model = python_model(tmp_path, "m")
    path = model / PROBE_FILE
    async with registry(tmp_path / "data") as known:
        path.mkdir()
        assert (await known.register("m", model)).invalid_reason == f"{PROBE_FILE} is a folder"
        path.rmdir()
        path.write_bytes(b" " * (probe.MAX_TEXT + 1))
        reason = (await known.register("m", model)).invalid_reason
        assert reason == f"{PROBE_FILE} has 1048577 bytes, more than 1048576"
        path.unlink()
        (tmp_path / "secret").write_text("{}")
        path.symlink_to(tmp_path / "secret")
        outside = await refusal(known.register("m", model))
        assert (outside.reason, "outside /" in outside.message) == ("INVALID_ARTIFACT", True)


@pytest.mark.triton
def test_a_server_answers_it(tmp_path: Path) -> None:
    for model in ("text_stats", "file_features"):
        shutil.copytree(ROOT / "model_repository" / model, tmp_path / "repo" / model)
    with triton_direct(tmp_path, tmp_path / "repo") as server:
        for model in ("text_stats", "file_features"):
            source = open_source(tmp_path / "repo" / model, model)
            found = scan_version(source, 1, "KIND_CPU")
            assert (bool(found.probe), found.problem) == (True, "")
            request = ModelInferRequest.FromString(found.probe)
            request.model_name = model
            server.load(model)
            reply = server.client._client_stub.ModelInfer(request, timeout=20)
            assert len(reply.outputs) == len(ModelConfig.FromString(found.config).output)
