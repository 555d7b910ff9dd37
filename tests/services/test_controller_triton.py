"""The Controller's hands on a Triton: every call against a real server."""

import asyncio
import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_client
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from services.controller import footprints
from services.controller.core.entities import Unit
from services.controller.footprints import RAM, Footprints, stub_unit
from services.controller.triton import (
    READY,
    Triton,
    TritonGone,
    TritonRefused,
    config_override,
)
from tests.fleet.triton_direct import ROOT, DirectTriton, triton_direct, triton_python

triton_only = pytest.mark.triton

MIB = 1 << 20
SECONDS = 20.0  # for a load or an unload; they take well below one

CODE = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", {answer})])
"""

# One for each test: to unload takes Triton a second, and they need not wait for it.
PAIRS = [f"pair{number}" for number in range(9)]
SELFCHECKS = ("empty", "other", "fails", "broken", "missing")

# --- the server -----------------------------------------------------------------------------------


def config(name: str, instances: int = 1) -> model_config_pb2.ModelConfig:
    made = model_config_pb2.ModelConfig(name=name, backend="python")
    made.input.add(name="INPUT", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    made.output.add(name="OUTPUT", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    made.instance_group.add(count=instances, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    made.parameters["kept"].string_value = "as it is"
    return made


def wire(name: str, instances: int = 1) -> bytes:
    return bytes(config(name, instances).SerializeToString())


def write(
    repository: Path,
    name: str,
    version: int = 1,
    *,
    initialize: str = "pass",
    answer: str = "x",
    instances: int = 1,
) -> None:
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(CODE.format(initialize=initialize, answer=answer))
    text = text_format.MessageToString(config(name, instances))
    (repository / name / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    models = tmp_path_factory.mktemp("models")
    for pair in PAIRS:
        for version in (1, 2):
            write(models, pair, version, answer=f"x * {version}")
        write(models, pair, 3, initialize="raise ValueError('weights are missing')")
    write(models, "slow", initialize="time.sleep(0.8)")
    write(models, "slower", initialize="time.sleep(1.5)")
    write(models, "ballast", initialize=f"self.kept = np.ones({64 * MIB}, np.uint8)")
    write(models, "spike", initialize=f"np.ones({64 * MIB}, np.uint8).sum()")
    write(models, "twins", instances=2)

    right = ROOT / "deploy" / "triton" / "selfcheck" / "shoal-selfcheck" / "1" / "model.py"
    write(models, "shoal-selfcheck")
    (models / "shoal-selfcheck" / "1" / "model.py").write_bytes(right.read_bytes())
    # As with numpy 2: it loads, it answers, and every output is empty.
    write(models, "selfcheck-empty", answer="x[:0]")
    write(models, "selfcheck-other", answer="x * 2")
    write(models, "selfcheck-fails", answer="x.no_such_thing")
    write(models, "selfcheck-broken", initialize="raise ImportError('no module named numpy')")

    # A cache that is written later would make Triton load the version anew.
    subprocess.run([triton_python(), "-m", "compileall", "-q", models], check=True)
    folder = tmp_path_factory.mktemp("server")
    with triton_direct(folder, models, id=f"direct-{secrets.token_hex(4)}") as running:
        yield running


@pytest.fixture
async def triton(server: DirectTriton) -> AsyncIterator[Triton]:
    async with Triton(server.spec.id, server.address, server.spec.admin_secret) as one:
        yield one


@pytest.fixture(scope="module")
def unused() -> list[str]:
    return list(PAIRS)


@pytest.fixture
def pair(unused: list[str]) -> str:
    """A model that no other test has loaded. Versions 1 and 2 multiply by their number, version 3
    cannot be loaded."""
    return unused.pop()


async def ready(triton: Triton, model: str) -> set[int]:
    """The versions of the model that answer."""
    index = await triton.index()
    return {
        unit.version for unit, (state, _) in index.items() if state == READY and unit.model == model
    }


def pids(server: DirectTriton, model: str) -> dict[int, set[int]]:
    """Of the processes of each version."""
    found: dict[int, set[int]] = {}
    for child in server.process.children():
        unit = stub_unit(child.cmdline())
        if unit is not None and unit.model == model:
            found.setdefault(unit.version, set()).add(child.pid)
    return found


def ask(server: DirectTriton, model: str, version: int) -> list[float]:
    values = np.array([1.0, 2.0], np.float32)
    tensor = triton_client.InferInput("INPUT", [2], "FP32")
    tensor.set_data_from_numpy(values)
    result = server.client.infer(model, [tensor], model_version=str(version))
    return list(result.as_numpy("OUTPUT"))


# --- what there is --------------------------------------------------------------------------------


@triton_only
async def test_the_server_says_who_it_is(server: DirectTriton, triton: Triton) -> None:
    assert await triton.name() == server.spec.id


@triton_only
async def test_the_index_tells_of_every_version_that_was_asked_for(
    triton: Triton, pair: str
) -> None:
    unit = Unit(pair, 1)
    assert (await triton.index()).get(unit, ("", ""))[0] == ""
    await triton.apply(wire(pair), (1,), unit, SECONDS)
    assert (await triton.index())[unit] == (READY, "")
    await triton.drop(wire(pair), (), unit, SECONDS)
    assert (await triton.index())[unit] == ("UNAVAILABLE", "unloaded")
    await triton.drop(wire(pair), (), unit, SECONDS)
    assert not await ready(triton, pair), "what is not loaded may be dropped"


async def test_a_server_that_is_not_there_is_gone() -> None:
    unit = Unit("m", 1)
    async with Triton("t0", "127.0.0.1:1", "") as nowhere:
        for call in (
            nowhere.name(),
            nowhere.index(),
            nowhere.apply(wire("m"), (1,), unit, 1.0),
            nowhere.drop(wire("m"), (), unit, 1.0),
            nowhere.selfcheck("m"),
        ):
            with pytest.raises(TritonGone, match="UNAVAILABLE"):
                await call


@triton_only
@pytest.mark.parametrize("key", ["", "wrong"])
async def test_without_the_key_nothing_is_told_or_changed(
    server: DirectTriton, triton: Triton, pair: str, key: str
) -> None:
    unit = Unit(pair, 1)
    async with Triton(server.spec.id, server.address, key) as stranger:
        with pytest.raises(TritonGone, match="restricted"):
            await stranger.index()
        with pytest.raises(TritonGone, match="restricted"):
            await stranger.apply(wire(pair), (1,), unit, SECONDS)
    assert unit not in await triton.index()


# --- loading and unloading one version ------------------------------------------------------------


@triton_only
async def test_one_version_comes_and_goes_and_the_other_notices_nothing(
    server: DirectTriton, triton: Triton, pair: str
) -> None:
    await triton.apply(wire(pair), (1,), Unit(pair, 1), SECONDS)
    first = pids(server, pair)[1]
    await triton.apply(wire(pair), (1, 2), Unit(pair, 2), SECONDS)
    assert await ready(triton, pair) == {1, 2}
    assert pids(server, pair)[1] == first
    assert (ask(server, pair, 1), ask(server, pair, 2)) == ([1.0, 2.0], [2.0, 4.0])

    await triton.drop(wire(pair), (1,), Unit(pair, 2), SECONDS)
    assert await ready(triton, pair) == {1}
    assert pids(server, pair) == {1: first}
    assert ask(server, pair, 1) == [1.0, 2.0]
    with pytest.raises(InferenceServerException, match="version 2 is not at ready state"):
        ask(server, pair, 2)


@triton_only
async def test_the_older_version_can_leave_first(
    server: DirectTriton, triton: Triton, pair: str
) -> None:
    await triton.apply(wire(pair), (2,), Unit(pair, 2), SECONDS)
    await triton.apply(wire(pair), (1, 2), Unit(pair, 1), SECONDS)
    second = pids(server, pair)[2]
    await triton.drop(wire(pair), (2,), Unit(pair, 1), SECONDS)
    assert pids(server, pair) == {2: second}


@triton_only
async def test_what_is_loaded_may_be_applied_again(
    server: DirectTriton, triton: Triton, pair: str
) -> None:
    await triton.apply(wire(pair), (1,), Unit(pair, 1), SECONDS)
    before = pids(server, pair)
    await triton.apply(wire(pair), (1,), Unit(pair, 1), SECONDS)
    assert pids(server, pair) == before


@triton_only
async def test_a_load_that_fails_says_why_and_harms_no_other(
    server: DirectTriton, triton: Triton, pair: str
) -> None:
    await triton.apply(wire(pair), (1,), Unit(pair, 1), SECONDS)
    before = pids(server, pair)
    with pytest.raises(TritonRefused, match="ValueError: weights are missing"):
        await triton.apply(wire(pair), (1, 3), Unit(pair, 3), SECONDS)
    assert await ready(triton, pair) == {1}
    assert pids(server, pair) == before
    await triton.apply(wire(pair), (1, 2), Unit(pair, 2), SECONDS)
    assert await ready(triton, pair) == {1, 2}, "it is not in the way of later ones"


@triton_only
async def test_what_has_no_files_is_refused(triton: Triton, pair: str) -> None:
    for unit in (Unit("nowhere", 1), Unit(pair, 9)):
        with pytest.raises(TritonRefused):
            await triton.apply(wire(unit.model), (unit.version,), unit, SECONDS)
        assert not await ready(triton, unit.model)


@triton_only
async def test_a_load_longer_than_its_call_is_seen_to_its_end(triton: Triton) -> None:
    await triton.apply(wire("slow"), (1,), Unit("slow", 1), 0.6)
    assert await ready(triton, "slow") == {1}


@triton_only
async def test_a_load_that_takes_too_long_is_told_as_it_stands(triton: Triton) -> None:
    unit = Unit("slower", 1)
    with pytest.raises(TritonRefused, match="slower:1 is still LOADING"):
        await triton.apply(wire("slower"), (1,), unit, 0.2)
    await triton.apply(wire("slower"), (1,), unit, SECONDS)
    assert await ready(triton, "slower") == {1}


# --- the override of a config ---------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=4, unique=True),
    st.sampled_from(["latest", "all", "specific", None]),
)
def test_an_override_changes_the_version_policy_alone(versions: list[int], policy: Any) -> None:
    original = config("pair", instances=3)
    if policy == "latest":
        original.version_policy.latest.num_versions = 2
    elif policy == "all":
        original.version_policy.all.SetInParent()
    elif policy == "specific":
        original.version_policy.specific.versions.append(7)
    override = config_override(bytes(original.SerializeToString()), tuple(versions))
    found = json_format.Parse(override, model_config_pb2.ModelConfig())
    assert list(found.version_policy.specific.versions) == versions
    for each in (found, original):
        each.ClearField("version_policy")
    assert found == original
    assert "instance_group" in json.loads(override), "names as Triton writes them"


# --- the self-check -------------------------------------------------------------------------------


@triton_only
async def test_a_server_that_answers_rightly_passes(triton: Triton) -> None:
    assert await triton.selfcheck("shoal-selfcheck") is None
    assert not await ready(triton, "shoal-selfcheck"), "the model does not stay"


@triton_only
async def test_a_server_that_answers_wrongly_is_found(triton: Triton) -> None:
    models = [f"selfcheck-{name}" for name in SELFCHECKS]
    found = await asyncio.gather(*map(triton.selfcheck, models))
    wrong = "it answers an identity model wrongly ({} bytes instead of 12): its Python models need"
    for problem, start in zip(
        found,
        (
            wrong.format(0),
            wrong.format(12),
            "the self-check model selfcheck-fails fails: ",
            "the self-check model selfcheck-broken cannot be loaded: ",
            "the self-check model selfcheck-missing cannot be loaded: ",
        ),
        strict=True,
    ):
        assert problem is not None
        assert problem.startswith(start)
    assert not [model for model in models if await ready(triton, model)], "none of them stays"


# --- footprints -----------------------------------------------------------------------------------


@triton_only
async def test_each_unit_takes_what_its_processes_take(
    server: DirectTriton, triton: Triton, pair: str
) -> None:
    names = (pair, "ballast", "spike", "twins")
    small, ballast, spike, twins = units = [Unit(name, 1) for name in names]
    for unit in units:
        await triton.apply(wire(unit.model, 2 if unit is twins else 1), (1,), unit, SECONDS)
    sizes = {unit: size[RAM] for unit, size in measured(server).units.items()}
    assert sizes.keys() >= set(units)
    assert 0 < sizes[small] < 64 * MIB
    assert sizes[ballast] >= sizes[small] + 60 * MIB
    assert sizes[spike] >= sizes[small] + 50 * MIB, "what it took for a moment counts"
    assert len(pids(server, "twins")[1]) == 2
    assert sizes[twins] >= 1.5 * sizes[small], "an instance is a process of its own"

    await triton.drop(wire("ballast"), (), ballast, SECONDS)
    left = measured(server)
    assert left.units.keys() == sizes.keys() - {ballast}
    assert left.others[RAM] > 0


def measured(server: DirectTriton) -> Footprints:
    process = footprints.find_server(server.address)
    assert process is not None
    assert process.pid == server.process.pid
    found = footprints.measure(process)
    assert found is not None
    return found


def test_a_server_of_that_id_is_not_here() -> None:
    assert footprints.find_server("127.0.0.1:1") is None


def test_a_server_that_has_ended_takes_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(ended.pid)
    assert footprints.measure(process) is not None
    ended.communicate(b"\n")
    assert footprints.measure(process) is None


STUB = "/backends/python/triton_python_backend_stub"


@pytest.mark.parametrize(
    ("words", "unit"),
    [
        ([STUB, "/models/pair/2/model.py", "prefix", "1", "0"], Unit("pair", 2)),
        ([STUB, "/a/b/c/d.e_f-g/10/model.py"], Unit("d.e_f-g", 10)),
        ([STUB, "/backends/onnxruntime/model.py"], None),
        ([STUB, "/models/pair/02/model.py"], None),
        ([STUB, "model.py"], None),
        ([STUB], None),
        (["python", "/models/pair/2/model.py"], None),
        ([], None),
    ],
)
def test_the_unit_in_a_command_line(words: list[str], unit: Unit | None) -> None:
    assert stub_unit(words) == unit
