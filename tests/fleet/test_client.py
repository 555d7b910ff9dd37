"""shoal.client against the whole stack: models by name, cold ones too, and the code of its page."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shoal.client import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from shoal.names import ModelVersionName
from tests.support.client_docs import blocks
from tests.support.clients import KINDS, either, spanned
from tests.support.stack import Fleet, example

pytestmark = pytest.mark.triton

both = pytest.mark.parametrize("kind", KINDS)

# Quick to load, and one more than there are places.
ASKED = (("multiplier", 1), ("text_stats", 1), ("squeezenet_onnx", 1), ("shufflenet_onnx", 1))


def everything(stack: Fleet) -> dict[str, str]:
    return {
        "router": stack.router_grpc,
        "registry": stack.registry_address,
        "controller": stack.controller_address,
    }


@both
async def test_cold_models_by_name(stack: Fleet, kind: str) -> None:
    async with either(kind, router=stack.router_grpc, timeout=60) as ask:

        async def check(model: str, version: int) -> None:
            wanted = example(model, version)
            result = await ask("infer", model, wanted.inputs, version=version, id="i")
            assert not wanted.mismatches(result.outputs)
            assert (result.model, result.version, result.id) == (model, str(version), "i")

        await asyncio.gather(*(check(*one) for one in ASKED))


@both
async def test_what_a_model_takes(stack: Fleet, kind: str) -> None:
    async with either(kind, router=stack.router_grpc) as ask:
        assert await ask("live")
        assert await ask("ready")
        assert await ask("ready", "multiplier", 2)
        assert not await ask("ready", "multiplier", 9)
        metadata = await ask("metadata", "multiplier")
        assert metadata.versions == ("1", "2")
        assert [one.datatype for one in metadata.inputs] == ["FP32"]
        config = await ask("config", "multiplier")
        assert config["version_policy"] == {"all": {}}


@both
async def test_refusals(stack: Fleet, kind: str) -> None:
    inputs = example("multiplier", 1).inputs
    async with either(kind, **everything(stack)) as ask:
        with pytest.raises(NotFound) as unknown:
            await ask("infer", "absent", inputs)
        assert (unknown.value.reason, unknown.value.metadata) == (
            "MODEL_NOT_FOUND",
            {"model": "absent"},
        )
        with pytest.raises(NotFound) as version:
            await ask("infer", "multiplier", inputs, version=9)
        assert version.value.reason == "VERSION_NOT_FOUND"
        with pytest.raises(InvalidArgument) as tensor:  # Triton's own words
            await ask("infer", "multiplier", {"INPUT": np.zeros((1, 2), np.int64)}, timeout=60)
        assert (tensor.value.reason, "FP32" in tensor.value.message) == ("", True)
        with pytest.raises(NotFound, match="has no alias 'nope'; it has: none"):
            await ask("load", "multiplier", "nope")


@both
async def test_aliases_and_traffic(stack: Fleet, kind: str) -> None:
    inputs = example("multiplier", 1).inputs
    async with either(kind, **everything(stack)) as ask:
        try:
            changed = await ask("set_alias", "multiplier", f"old-{kind}", 1)
            assert changed.aliases[f"old-{kind}"] == 1
            await ask("wait_for_route", "multiplier", f"old-{kind}", answers=1)
            result = await ask("infer", "multiplier", inputs, version=f"old-{kind}", timeout=60)
            assert result.version == "1"

            changed = await ask("set_traffic", "multiplier", {f"old-{kind}": 1})
            assert [(arm.model, arm.version, arm.weight) for arm in changed.traffic] == [
                ("multiplier", f"old-{kind}", 1)
            ]
            await ask("wait_for_route", "multiplier", answers=1)
            assert (await ask("infer", "multiplier", inputs)).version == "1"
        finally:
            await ask("clear_traffic", "multiplier")
            await ask("delete_alias", "multiplier", f"old-{kind}")
        await ask("wait_for_route", "multiplier", answers=2)
        await ask("wait_for_route", "multiplier", f"old-{kind}", answers=None)
        with pytest.raises(TimeoutError):
            await ask("wait_for_route", "multiplier", answers=7, within=0.1)


@both
async def test_residency_by_hand(stack: Fleet, kind: str) -> None:
    async with either(kind, **everything(stack)) as ask:
        replica = await ask("load", "text_stats")
        assert (replica.model, replica.version, replica.state) == ("text_stats", 1, "READY")
        assert replica.load_duration > 0
        assert [one.server for one in await ask("replicas", "text_stats", 1)] == [replica.server]
        [server] = await ask("servers")
        assert (server.name, server.state, server.max_models) == (replica.server, "HEALTHY", 3)
        assert (await ask("pin", "text_stats", 1)).pinned
        try:
            with pytest.raises(FailedPrecondition) as held:
                await ask("evict", "text_stats", 1)
            assert held.value.reason == "HELD"
        finally:
            await ask("unpin", "text_stats")

        explained = await ask("explain", "text_stats")
        assert [(arm.model, arm.version, arm.share) for arm in explained.arms] == [
            ("text_stats", 1, 1.0)
        ]
        [why] = explained.versions
        assert why.version == ModelVersionName("text_stats", 1)
        assert why.stays[0].replica.server == replica.server
        assert why.stays[0].placed
        assert why.servers[0].holds

        assert await ask("evict", "text_stats") == (replica.server,)
        assert await ask("replicas", "text_stats") == []
        kinds = [event.kind for event in await ask("events", "text_stats", limit=5)]
        assert "UNLOADED" in kinds
        [why] = (await ask("explain", "text_stats")).versions
        assert (why.stays, why.reason != "") == ((), True)
        assert why.evictions[0].event.version == ModelVersionName("text_stats", 1)


@both
async def test_the_trace_goes_on(stack: Fleet, kind: str) -> None:
    async with either(kind, **everything(stack)) as ask:
        await ask("evict", "text_stats")
        with spanned() as span:
            await ask("infer", "text_stats", example("text_stats").inputs, timeout=60)

        loads = [
            event.trace_id
            for event in await ask("events", "text_stats", limit=10)
            if event.kind == "LOADING"
        ]
    assert loads[0] == f"{span.trace_id:032x}"


# --- the page -------------------------------------------------------------------------------------


def at(stack: Fleet, code: str) -> str:
    """The code with the addresses of this stack."""
    for port, address in (
        (8001, stack.router_grpc),
        (8000, stack.router_http),
        (9101, stack.registry_address),
        (9102, stack.controller_address),
    ):
        code = code.replace(f"localhost:{port}", address)
    return code


@pytest.mark.parametrize("code", blocks("ci:python") + blocks("ci:client", "README.md"))
def test_the_python_examples(stack: Fleet, code: str) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", at(stack, code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize("line", [line for one in blocks("ci:curl") for line in one.splitlines()])
def test_the_shell_examples(stack: Fleet, line: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-c", at(stack, line)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
