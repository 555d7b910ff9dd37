"""The Controller's hands on a Triton: every call against a real server."""

import asyncio
import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from services.controller.core.entities import Health, Server, Unit
from services.controller.measurement import footprints
from services.controller.measurement.footprints import RAM, Footprints, stub_unit
from services.controller.servers import calls as server_calls
from services.controller.triton.client import (
    READY,
    Deadline,
    Triton,
    TritonGone,
    TritonRefused,
    TritonSlow,
)
from services.controller.triton.config import config_override
from services.controller.triton.statistics import memory_of
from shoal.controller.v1 import controller_service_pb2 as controller
from tests.support.triton_direct import ROOT, DirectTriton, triton_direct, triton_python
from tests.support.triton_models import ask, config, pids, wire, write

triton_only = pytest.mark.triton

MIB = 1 << 20
SECONDS = 20.0  # for a load or an unload; they take well below one

# One for each test: to unload takes Triton a second, and they need not wait for it.
PAIRS = [f"pair{number}" for number in range(10)]
SELFCHECKS = ("empty", "other", "fails", "broken", "missing")

# --- the server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    models = tmp_path_factory.mktemp("models")
    for pair in PAIRS:
        for version in (1, 2):
            write(models, pair, version, answer=f"x * {version}")
        write(models, pair, 3, initialize="raise ValueError('weights are missing')")
    write(models, "slow", initialize="time.sleep(0.8)")
    write(models, "slower", initialize="time.sleep(1.5)")
    write(models, "slower", 2)
    write(models, "slowest", initialize="time.sleep(1)")
    counted = "(self.asked.append(1), x * 0 + len(self.asked))[1]"
    write(models, "warm", initialize="self.asked = []", answer=counted)
    write(models, "cold")
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


@triton_only
@pytest.mark.parametrize(
    ("health", "code"), [(Health.UNKNOWN, 0), (Health.HEALTHY, 0), (Health.UNREACHABLE, 14)]
)
async def test_a_server_is_asked_unless_it_is_known_not_to_answer(
    triton: Triton, health: Health, code: int
) -> None:
    server = Server("t0", "", health=health, reason="it is off")
    request = controller.CallServersRequest(call=controller.SERVER_CALL_LOG_SETTINGS)
    reply = await server_calls.call({"t0": server}, {"t0": triton}, request)
    (answer,) = reply.answers
    assert (answer.server, answer.code) == ("t0", code)
    assert answer.text == ("it is unreachable: it is off" if code else "")


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
async def test_a_load_that_is_not_over_in_time_goes_on_and_can_be_seen_to_its_end(
    triton: Triton,
) -> None:
    unit = Unit("slow", 1)
    with pytest.raises(TritonSlow, match=r"slow:1 is still LOADING after 0\.2 s"):
        await triton.apply(wire("slow"), (1,), unit, 0.2)
    assert await triton.settled(unit, Deadline.within(SECONDS)) == (READY, "")


@triton_only
async def test_nothing_is_told_about_a_model_that_is_loading(triton: Triton) -> None:
    first, second = Unit("slower", 1), Unit("slower", 2)
    with pytest.raises(TritonSlow, match="slower:1 is still LOADING"):
        await triton.apply(wire("slower"), (1,), first, 0.2)
    with pytest.raises(TritonSlow, match="slower:1 is still LOADING"):
        await triton.drop(wire("slower"), (), first, 0.2)
    with pytest.raises(TritonSlow, match="slower:1 is still LOADING"):
        await triton.apply(wire("slower"), (2,), second, 0.2)
    assert (await triton.settled(first, Deadline.within(SECONDS)))[0] == READY, "not unloaded"
    await triton.apply(wire("slower"), (1, 2), second, SECONDS)
    assert await ready(triton, "slower") == {1, 2}


@triton_only
async def test_what_is_dropped_while_it_loads_is_unloaded_after_that(triton: Triton) -> None:
    unit = Unit("slowest", 1)
    with pytest.raises(TritonSlow):
        await triton.apply(wire("slowest"), (1,), unit, 0.2)
    await triton.drop(wire("slowest"), (), unit, SECONDS)
    assert (await triton.index())[unit] == ("UNAVAILABLE", "unloaded")


# --- a model's own warm-up ------------------------------------------------------------------------


def warmed_up(name: str, tensor: str = "INPUT") -> bytes:
    """A config with Triton's own model_warmup, of an input: it is a part of the load."""
    made = config(name)
    sample = made.model_warmup.add(name="once", batch_size=1, count=1)
    sample.inputs[tensor].data_type = model_config_pb2.TYPE_FP32
    sample.inputs[tensor].dims.append(2)
    sample.inputs[tensor].zero_data = True
    return bytes(made.SerializeToString())


@triton_only
async def test_a_model_is_ready_after_its_warm_up(server: DirectTriton, triton: Triton) -> None:
    await triton.apply(warmed_up("warm"), (1,), Unit("warm", 1), SECONDS)
    assert ask(server, "warm", 1) == [2.0, 2.0], "the warm-up was its first request"


@triton_only
async def test_a_warm_up_that_fails_is_a_load_that_fails(triton: Triton) -> None:
    """By a sample without what the model asks for. Where the model itself fails its warm-up, Triton
    24.10 refuses the load likewise or ends with SIGSEGV: it did in 9 of 34 such loads."""
    unit = Unit("cold", 1)
    with pytest.raises(TritonRefused, match=r"missing required input\(s\) \['INPUT'\]"):
        await triton.apply(warmed_up("cold", "NO_SUCH"), (1,), unit, SECONDS)
    assert not await ready(triton, "cold")


# --- what requests went through -------------------------------------------------------------------


@triton_only
async def test_the_queues_are_told_by_unit(server: DirectTriton, triton: Triton, pair: str) -> None:
    unit = Unit(pair, 2)
    await triton.apply(wire(pair), (2,), unit, SECONDS)
    assert (await triton.statistics())[unit].queued == 0
    for _ in range(3):
        ask(server, pair, 2)
    async with asyncio.timeout(SECONDS):
        while True:  # a request is counted a moment after its answer
            told = (await triton.statistics())[unit]
            if told.queued >= 3:
                break
            await asyncio.sleep(0.01)
    assert told.queued == 3
    assert 0 < told.queue_seconds < 1
    assert told.memory == {}, "the Python backend tells nothing"
    assert Unit(pair, 1) not in await triton.statistics()


def test_memory_as_a_backend_tells_it() -> None:
    row = service_pb2.ModelStatistics()
    for type_, id_, size in (("CPU", 0, 5), ("GPU", 1, 7), ("CPU_PINNED", 0, 2), ("GPU", 1, 1)):
        row.memory_usage.add(type=type_, id=id_, byte_size=size)
    assert memory_of(row.memory_usage) == {"ram": 7, "gpu:1": 8}


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
