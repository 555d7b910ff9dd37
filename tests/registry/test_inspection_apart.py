"""Inspection in a process of its own: the same answers, and nothing else waits for it."""

import asyncio
import time
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.registry.formats.apart import inspect_apart
from services.registry.formats.inspection import inspect
from services.registry.formats.refusal import Refusal
from tests.registry.test_formats import BUILT
from tests.support import artifacts as made


@pytest.mark.parametrize("name", ["onnx", "mlflow", "tensorrt-plan", "xgboost"])
async def test_the_same_comes_out(name: str, tmp_path: Path) -> None:
    BUILT[name][0](tmp_path)
    assert await inspect_apart(tmp_path) == inspect(tmp_path)


async def test_options_are_taken_along(tmp_path: Path) -> None:
    BUILT["python"][0](tmp_path)
    with pytest.raises(Refusal, match=r"model\.py is Python code"):
        await inspect_apart(tmp_path, scheme="hf", code_sources=())
    given = ModelConfig(max_batch_size=3)
    found = await inspect_apart(tmp_path, scheme="hf", code_sources=("hf",), given=given)
    assert found.config.max_batch_size == 3


async def test_what_takes_too_long_is_refused(tmp_path: Path) -> None:
    BUILT["onnx"][0](tmp_path)
    with pytest.raises(Refusal, match=r"took more than 0\.001 s"):
        await inspect_apart(tmp_path, seconds=0.001)


async def test_nothing_waits_for_it(tmp_path: Path) -> None:
    """Parsing this takes a second, in which no other thread of the same process would run."""
    made.transformers(tmp_path)
    lists = ",".join(["[]"] * 500_000)
    (tmp_path / "config.json").write_text(f'{{"model_type": "bert", "more": [{lists}]}}')
    looked = asyncio.create_task(inspect_apart(tmp_path))
    longest = 0.0
    while not looked.done():
        began = time.monotonic()
        await asyncio.wait([looked], timeout=0.01)
        longest = max(longest, time.monotonic() - began)
    assert (await looked).format == "transformers"
    assert longest < 1.0  # a busy machine; alone it is a few milliseconds
