"""What arrives from a source is looked at before it is registered: its format, and its code."""

import pickle
from pathlib import Path

import pytest

from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.registry.test_imports import disk, ended, start
from tests.support.artifacts import onnx_model
from tests.support.registry import PYTHON_CODE, PYTHON_CONFIG, registry
from tests.support.sources import MemorySource

MODELS = {
    "graph": {"1/model.onnx": onnx_model()},
    "cut": {"1/model.onnx": onnx_model()[:-20]},
    "code": {"config.pbtxt": PYTHON_CONFIG.encode(), "1/model.py": PYTHON_CODE.encode()},
    "pickled": {"1/model.pkl": pickle.dumps({"weights": [1.0]})},
    "words": {"1/readme.txt": b"no model at all"},
}


@pytest.fixture(autouse=True)
def source(monkeypatch: pytest.MonkeyPatch) -> None:
    made = MemorySource(dict(MODELS))
    monkeypatch.setattr("services.registry.assembly.origin_of", lambda *_, **__: made)


async def test_the_format_is_part_of_the_provenance(tmp_path: Path) -> None:
    async with registry(tmp_path / "data", code_sources=()) as known:
        last = await ended(known, await start(known, "s3://memory/graph", "graph"))
        assert last.state == types.IMPORT_STATE_REGISTERED, last.reason
        version = await known.version("graph:1")
        assert version.provenance.about["format"] == "onnx"
        assert "opset" in version.provenance.about["notes"]


@pytest.mark.parametrize(
    ("model", "sources", "said"),
    [
        ("cut", (), "cut off"),
        ("code", ("file",), "allow code from 's3' in SHOAL_REGISTRY_CODE_SOURCES"),
        ("pickled", ("s3",), "which no server opens: export it to ONNX"),
        ("words", ("s3",), "s3://memory/words cannot be served"),
    ],
)
async def test_what_no_server_should_see_is_refused_and_leaves_nothing(
    tmp_path: Path, model: str, sources: tuple[str, ...], said: str
) -> None:
    async with registry(tmp_path / "data", code_sources=sources) as known:
        last = await ended(known, await start(known, f"s3://memory/{model}", model))
        assert last.state == types.IMPORT_STATE_FAILED
        assert said in last.reason
        assert (await disk(known)).used_bytes == 0
        assert not (await known.stub.ListModels(pb.ListModelsRequest())).models


async def test_code_is_taken_from_where_it_is_allowed(tmp_path: Path) -> None:
    async with registry(tmp_path / "data", code_sources=("s3",)) as known:
        last = await ended(known, await start(known, "s3://memory/code", "code"))
        assert last.state == types.IMPORT_STATE_REGISTERED, last.reason
