"""Loads and unloads on a real Triton, each seen to its end, whatever becomes of it."""

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from services.controller.core import events as ev
from services.controller.core.entities import ReplicaKey, Unit
from services.controller.measurement.gpus import Gpus
from services.controller.measurement.processes import Processes
from services.controller.registry.catalogue import Catalogue, LearnedFootprint
from services.controller.servers.changes import Changes, Timeouts
from services.controller.triton.client import LOADING, READY, UNLOADING, Triton, TritonSlow
from shoal.names import model_name, version_name
from shoal.registry.v1 import types_pb2 as registry
from tests.support.triton_direct import DirectTriton, triton_direct, triton_python
from tests.support.triton_models import ask, config, pids, wire, write
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

SECONDS = 20.0
TIMEOUTS = Timeouts(load=SECONDS, unload=SECONDS, probe=SECONDS)
PLAIN = tuple(f"plain{number}" for number in range(9))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    models = tmp_path_factory.mktemp("models")
    for name in PLAIN:
        write(models, name)
        write(models, name, 2)
    for name in ("slow", "slower"):
        write(models, name, initialize="time.sleep(1)")
    write(models, "late-failure", initialize="time.sleep(0.5); raise ValueError('no weights')")
    write(models, "picky", answer="x.no_such_thing")
    write(models, "picky", 2)
    write(models, "thoughtful", answer="time.sleep(2) or x")
    write(models, "chatty")
    write(models, "clinging")
    with (models / "clinging" / "1" / "model.py").open("a") as code:
        code.write("\n    def finalize(self):\n        time.sleep(2)\n")
    (models / "chain" / "1").mkdir(parents=True)
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
    return list(PLAIN)


@pytest.fixture
def plain(unused: list[str]) -> str:
    """A model of two versions that no other test has loaded."""
    return unused.pop()


@pytest.fixture
def changes(server: DirectTriton, triton: Triton) -> Changes:
    catalogue = Catalogue()
    processes = Processes({triton.id: server.address}, Gpus())
    return Changes({triton.id: triton}, catalogue, processes, TIMEOUTS, lambda server: quiet())


async def quiet() -> None:
    """Every server is as it was."""


def register(changes: Changes, *units: Unit, probe: bytes = b"", config: bytes = b"") -> None:
    versions = [
        registry.ModelVersion(
            name=version_name(*unit), config=config or wire(unit.model), probe=probe
        )
        for unit in units
    ]
    model = registry.Model(name=model_name(units[0].model))
    changes.catalogue.replace(
        [registry.CatalogEntry(model=model, versions=versions)], (), all_=False
    )


def probe(*values: float, name: str = "INPUT") -> bytes:
    request = service_pb2.ModelInferRequest(model_name="any")
    tensor = request.inputs.add(name=name, datatype="FP32", shape=[len(values)])
    tensor.contents.fp32_contents.extend(values)
    return bytes(request.SerializeToString())


def key(changes: Changes, unit: Unit) -> ReplicaKey:
    return ReplicaKey(next(iter(changes.tritons)), unit)


async def load(changes: Changes, unit: Unit, *versions: int) -> ev.Event:
    order = ev.Load(key(changes, unit), 7, versions or (unit.version,))
    outcome = await changes.load(order)
    await changes.processes.look(order.key.server)
    return outcome


async def unload(changes: Changes, unit: Unit, *versions: int) -> ev.Event:
    return await changes.unload(ev.Unload(key(changes, unit), 8, versions))


async def settle(changes: Changes, unit: Unit, *, loading: bool) -> ev.Event:
    return await changes.settle(ev.Settle(key(changes, unit), 9, loading))


async def state(triton: Triton, unit: Unit) -> str:
    return (await triton.index()).get(unit, ("", ""))[0]


@contextlib.asynccontextmanager
async def begun(triton: Triton, unit: Unit) -> AsyncIterator[None]:
    """Somebody else's load of it is under way."""
    apply = triton.apply(wire(unit.model), (unit.version,), unit, SECONDS)
    loading = asyncio.ensure_future(apply)
    async with asyncio.timeout(SECONDS):
        while await state(triton, unit) != LOADING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    yield
    await asyncio.gather(loading, return_exceptions=True)


async def killed(server: DirectTriton, changes: Changes, unit: Unit) -> None:
    """Its process, with SIGKILL; returns when it is dead."""
    for pid in pids(server, unit.model)[unit.version]:
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        while changes.processes.alive(server.spec.id, unit):  # noqa: ASYNC110 - the kernel's doing
            await asyncio.sleep(0.01)


# --- as it should be ------------------------------------------------------------------------------


async def test_what_is_unloaded_has_given_its_memory_back(
    server: DirectTriton, changes: Changes, plain: str
) -> None:
    first, second = Unit(plain, 1), Unit(plain, 2)
    register(changes, first, second)
    outcome = await load(changes, first)
    assert isinstance(outcome, ev.Loaded)
    assert (outcome.key, outcome.attempt) == (key(changes, first), 7)
    assert 0 < outcome.seconds < SECONDS
    await load(changes, second, 1, 2)
    assert changes.processes.alive(server.spec.id, first)
    assert not changes.processes.ended(server.spec.id, first)

    assert await unload(changes, first, 2) == ev.Unloaded(key(changes, first), 8)
    assert pids(server, plain).keys() == {2}, "its process is gone by then"
    assert changes.processes.broken(server.spec.id) == {}
    assert ask(server, plain, 2) == [1.0, 2.0]


async def test_a_load_that_hangs_is_told_and_others_go_on(
    changes: Changes, triton: Triton, plain: str
) -> None:
    slow, other = Unit("slow", 1), Unit(plain, 1)
    register(changes, slow)
    register(changes, other)
    impatient = replace(changes, timeouts=replace(TIMEOUTS, load=0.2))
    hung = await load(impatient, slow)
    assert hung == ev.LoadHung(key(changes, slow), 7, "slow:1 is still LOADING after 0.2 s")
    assert isinstance(await load(changes, other), ev.Loaded)
    assert await unload(changes, slow) == ev.Unloaded(key(changes, slow), 8)
    assert await state(triton, slow) == "UNAVAILABLE", "it was unloaded once it had been loaded"


async def test_an_unload_that_hangs_is_told(changes: Changes) -> None:
    unit = Unit("clinging", 1)
    register(changes, unit)
    await load(changes, unit)
    impatient = replace(changes, timeouts=replace(TIMEOUTS, unload=0.2))
    hung = await unload(impatient, unit)
    assert hung == ev.UnloadHung(key(changes, unit), 8, "clinging:1 is still UNLOADING after 0.2 s")
    assert isinstance(await settle(changes, unit, loading=False), ev.Unloaded)


# --- what others have begun -----------------------------------------------------------------------


async def test_a_load_that_was_found_is_seen_to_its_end(changes: Changes, triton: Triton) -> None:
    unit = Unit("slower", 1)
    register(changes, unit)
    async with begun(triton, unit):
        impatient = replace(changes, timeouts=replace(TIMEOUTS, load=0.2))
        assert isinstance(await settle(impatient, unit, loading=True), ev.LoadHung)
        changes.catalogue.learned[unit] = LearnedFootprint("", {}, 9.0)
        found = await settle(changes, unit, loading=True)
    assert found == ev.Loaded(key(changes, unit), 9, 9.0), "when it began is not known"
    assert await state(triton, unit) == READY


async def test_a_load_that_was_found_may_fail(changes: Changes, triton: Triton) -> None:
    unit = Unit("late-failure", 1)
    register(changes, unit)
    async with begun(triton, unit):
        failed = await settle(changes, unit, loading=True)
    assert isinstance(failed, ev.LoadFailedOnServer)
    assert "ValueError: no weights" in failed.cause


async def test_what_was_found_unloading_and_is_ready_again_is_unloaded(
    changes: Changes, triton: Triton, plain: str
) -> None:
    first, second = Unit(plain, 1), Unit(plain, 2)
    register(changes, first, second)
    await load(changes, first)
    await load(changes, second, 1, 2)
    assert isinstance(await settle(changes, first, loading=False), ev.Unloaded)
    assert (await state(triton, first), await state(triton, second)) == ("UNAVAILABLE", READY)


# --- dead processes -------------------------------------------------------------------------------


async def test_a_process_that_died_is_seen_before_anybody_asks(
    server: DirectTriton, changes: Changes, triton: Triton, plain: str
) -> None:
    unit = Unit(plain, 1)
    register(changes, unit)
    await load(changes, unit)
    assert changes.processes.broken(triton.id) == {}
    pid = min(pids(server, plain)[1])
    await killed(server, changes, unit)
    found = await changes.processes.look(triton.id)
    assert found is not None
    assert unit not in found.units, "it takes nothing any more"
    assert changes.processes.broken(triton.id) == {unit: f"its process {pid} is dead"}
    assert await state(triton, unit) == READY, "the server's index does not know"

    assert isinstance(await unload(changes, unit), ev.Unloaded)
    assert isinstance(await load(changes, unit), ev.Loaded)
    assert changes.processes.broken(triton.id) == {}
    assert ask(server, plain, 1) == [1.0, 2.0]


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_is_stuck_unloading_without_a_process_is_unloaded(
    server: DirectTriton, changes: Changes, triton: Triton, plain: str, *, restarted: bool
) -> None:
    """As Triton leaves it when a request has met the dead process. A Controller that was restarted
    never saw it alive."""
    unit = Unit(plain, 2)
    register(changes, unit)
    await load(changes, unit)
    await killed(server, changes, unit)
    with pytest.raises(InferenceServerException, match="is not healthy"):
        ask(server, plain, 2)
    if restarted:
        changes = replace(changes, processes=Processes({triton.id: server.address}, Gpus()))
        with pytest.raises(TritonSlow):
            await triton.drop(wire(plain), (), unit, 0.1)
        await changes.processes.look(triton.id)
        assert isinstance(await settle(changes, unit, loading=False), ev.Unloaded)
    else:
        assert isinstance(await unload(changes, unit), ev.Unloaded)
    assert await state(triton, unit) == UNLOADING
    assert isinstance(await load(changes, unit), ev.Loaded)
    assert ask(server, plain, 2) == [1.0, 2.0]


# --- probes ---------------------------------------------------------------------------------------


async def test_what_answers_its_probe_is_loaded(
    server: DirectTriton, changes: Changes, plain: str
) -> None:
    unit = Unit(plain, 1)
    register(changes, unit, probe=probe(1.0))
    assert isinstance(await load(changes, unit), ev.Loaded)

    def asked() -> int:
        (row,) = server.client.get_inference_statistics(plain, headers=server.admin).model_stats
        return int(row.inference_count)

    # Triton counts a moment after it has answered.
    await asyncio.to_thread(wait_until, asked, 5.0, "it was asked")
    assert asked() == 1


async def test_what_fails_its_probe_has_failed_to_load(changes: Changes, triton: Triton) -> None:
    good, bad = Unit("picky", 2), Unit("picky", 1)
    register(changes, good, bad, probe=probe(1.0))
    assert isinstance(await load(changes, good), ev.Loaded)
    failed = await load(changes, bad, 1, 2)
    assert isinstance(failed, ev.LoadFailedOnServer)
    assert failed.cause.startswith("the probe of picky:1 was answered INTERNAL: ")
    assert "no_such_thing" in failed.cause
    assert (await state(triton, bad), await state(triton, good)) == ("UNAVAILABLE", READY)


async def test_a_probe_that_is_not_answered_in_time_is_a_failure(
    changes: Changes, triton: Triton
) -> None:
    unit = Unit("thoughtful", 1)
    register(changes, unit, probe=probe(1.0))
    impatient = replace(changes, timeouts=replace(TIMEOUTS, probe=0.2))
    failed = await load(impatient, unit)
    assert isinstance(failed, ev.LoadFailedOnServer)
    assert failed.cause == "the probe of thoughtful:1 was not answered within 0.2 s"
    assert await state(triton, unit) == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"\xff\xff", "the probe of picky:2 is no ModelInferRequest"),
        (probe(1.0, name="OTHER"), "unexpected inference input 'OTHER'"),
    ],
)
async def test_a_bad_probe_says_so(changes: Changes, content: bytes, cause: str) -> None:
    unit = Unit("picky", 2)
    register(changes, unit, probe=content)
    failed = await load(changes, unit)
    assert isinstance(failed, ev.LoadFailedOnServer)
    assert cause in failed.cause


async def test_a_decoupled_model_is_not_probed(changes: Changes) -> None:
    made = config("chatty")
    made.model_transaction_policy.decoupled = True
    unit = Unit("chatty", 1)
    register(changes, unit, probe=b"\xff", config=bytes(made.SerializeToString()))
    assert isinstance(await load(changes, unit), ev.Loaded)


async def test_an_ensemble_is_probed_through_its_parts(
    changes: Changes, triton: Triton, plain: str
) -> None:
    part, chain = Unit(plain, 1), Unit("chain", 1)
    made = model_config_pb2.ModelConfig(name="chain", platform="ensemble")
    made.input.add(name="INPUT", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    made.output.add(name="OUTPUT", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    step = made.ensemble_scheduling.step.add(model_name=plain, model_version=1)
    step.input_map["INPUT"] = "INPUT"
    step.output_map["OUTPUT"] = "OUTPUT"
    register(changes, part)
    register(changes, chain, probe=probe(2.0), config=bytes(made.SerializeToString()))
    await load(changes, part)
    assert isinstance(await load(changes, chain), ev.Loaded)
    assert isinstance(await unload(changes, chain), ev.Unloaded)
    assert await state(triton, part) == READY
