"""Why a version is where it is, had to leave, or is not loaded: asked of a Controller with a real
Triton, by gRPC and by the command."""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc
import pytest

from services.common.status import error_info
from services.controller.api.explanations import CANDIDATES
from services.controller.core.entities import Server, Unit
from services.controller.core.events import Kind, Record, Weighed
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import types_pb2
from shoal.registry.v1 import types_pb2 as registry
from tests.support.cli import NO_CONTROLLER, NO_REGISTRY, NO_ROUTER, Done, shoal
from tests.support.controller import SECONDS, Alone, controller, entry
from tests.support.triton_direct import DirectTriton, triton_direct, triton_python
from tests.support.triton_models import write

MIB = 1 << 20
SMALL = {"ram": 60 * MIB}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    models = tmp_path_factory.mktemp("models")
    for name in "abc":
        write(models, name)
    write(models, "bad", initialize="raise ValueError('weights are missing')")
    subprocess.run([triton_python(), "-m", "compileall", "-q", models], check=True)
    with triton_direct(tmp_path_factory.mktemp("server"), models, id="t0") as running:
        yield running


def server(triton: DirectTriton, **more: Any) -> Server:
    """Room for two of the small ones."""
    return Server("t0", triton.address, budget={"ram": 150 * MIB}, max_models=4, **more)


CATALOGUE = [
    *(entry(name, 1, declared_memory=SMALL) for name in "abc"),
    entry("bad", 1, declared_memory=SMALL),
    entry("huge", 1, declared_memory={"ram": 1000 * MIB}),
    entry("wrong", 1, state=registry.VERSION_STATE_INVALID, invalid_reason="no config.pbtxt"),
    entry("old", 1, state=registry.VERSION_STATE_REJECTED),
]


async def command(running: Alone, *arguments: object) -> Done:
    """`shoal` beside a Controller alone."""
    parts = ("--registry", NO_REGISTRY, "--router", NO_ROUTER)
    at = ("--controller", running.address)
    return await asyncio.to_thread(shoal, *parts, *at, *arguments)


async def refused(call: Awaitable[Any]) -> str:
    """The reason."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    info = error_info(tuple(raised.value.trailing_metadata() or ()))
    assert info is not None
    return info.reason


async def until(running: Alone, seen: Callable[[types_pb2.Event], bool]) -> None:
    """Such an event is in the journal."""
    async with asyncio.timeout(SECONDS), aclosing(running.loop.journal.follow(-1)) as events:
        async for event in events:
            if seen(event):
                return


async def attached(running: Alone) -> None:
    """The server has been inventoried."""
    await until(running, lambda event: event.kind == types_pb2.EVENT_KIND_SERVER_HEALTHY)


async def loaded(running: Alone, *models: str) -> None:
    for model in models:
        request = wire.LoadModelRequest(name=f"models/{model}")
        await running.stub.LoadModel(request, timeout=SECONDS)


# --- with a real server ---------------------------------------------------------------------------


@pytest.mark.triton
async def test_from_the_first_load_to_the_eviction(triton: DirectTriton) -> None:
    async with controller([server(triton)], CATALOGUE, {"t0": triton.spec.admin_secret}) as running:
        stub = running.stub
        await attached(running)
        absent = await stub.WhyNotLoaded(wire.WhyNotLoadedRequest(name="models/a"))
        assert absent.reason == (
            "nothing asks for a:1; a request would load it: ram 60 MiB on t0, which has room"
        )
        (verdict,) = absent.servers
        assert (verdict.server, verdict.possible, verdict.holds) == ("servers/t0", True, False)
        assert 0 < verdict.score <= 1
        assert not absent.HasField("failure")

        await loaded(running, "a", "b")
        resident = await stub.WhyResident(wire.WhyResidentRequest(name="models/a/versions/1"))
        (stay,) = resident.replicas
        assert stay.replica.name == "servers/t0/replicas/a:1"
        assert stay.placed == "asked for: ram 60 MiB on t0, which has room"
        assert (stay.eviction_turn, stay.candidates, list(stay.kept_by)) == (1, 2, [])
        assert stay.weighed["bytes"] == 60 * MIB
        assert stay.weighed["reload_seconds"] > 0

        full = await stub.WhyNotLoaded(wire.WhyNotLoadedRequest(name="models/c"))
        assert list(full.servers[0].victims) == ["models/a/versions/1"]

        await loaded(running, "c")
        evicted = await stub.WhyEvicted(wire.WhyEvictedRequest(name="models/a"))
        (eviction,) = evicted.evictions
        assert eviction.event.for_version == "models/c/versions/1"
        assert [(row.version, row.evicted) for row in eviction.candidates] == [
            ("models/a/versions/1", True),
            ("models/b/versions/1", False),
        ]
        idle = [row.weighed["idle_seconds"] for row in eviction.candidates]
        assert idle[0] > idle[1] > 0
        await until(running, lambda event: event.kind == types_pb2.EVENT_KIND_UNLOADED)
        gone = await stub.WhyNotLoaded(wire.WhyNotLoadedRequest(name="models/a"))
        assert gone.reason.startswith("nothing asks for a:1; a request would load it: ")
        assert " s ago it was evicted from t0: least recently used in the fleet (" in gone.reason
        assert gone.reason.endswith("; makes room for c:1")

        shown = await command(running, "explain", "a:1")
        assert shown.status == 0
        assert "cannot tell where a request would go: the Router at" in shown.err
        lines = [line.split() for line in shown.out.splitlines()]
        assert ["t0", "could", "hold", "it"] in [line[:4] for line in lines]
        assert ["a:1", "yes"] in [line[:2] for line in lines]
        assert ["b:1", "no"] in [line[:2] for line in lines]
        there = await command(running, "explain", "b", "--json")
        (why,) = there.json["why"]
        assert why["resident"][0]["eviction_turn"] == 1
        assert why["not_loaded"]["servers"][0]["holds"]
        assert "1 of 2" in (await command(running, "explain", "b")).out


@pytest.mark.triton
async def test_a_load_that_failed(triton: DirectTriton) -> None:
    async with controller([server(triton)], CATALOGUE, {"t0": triton.spec.admin_secret}) as running:
        await attached(running)
        request = wire.LoadModelRequest(name="models/bad")
        assert await refused(running.stub.LoadModel(request, timeout=SECONDS)) == "LOAD_FAILED"
        absent = await running.stub.WhyNotLoaded(wire.WhyNotLoadedRequest(name="models/bad"))
        assert absent.reason.startswith("bad:1 could not be loaded on t0, and is not tried again")
        assert absent.failure.server == "servers/t0"
        assert "ValueError: weights are missing" in absent.failure.cause
        assert absent.failure.count == 1
        assert 0 < absent.failure.retry_after.ToTimedelta().total_seconds() <= 5
        assert "weights are missing" in (await command(running, "explain", "bad")).out


@pytest.mark.triton
async def test_a_drained_server_says_so_until_it_is_taken_back(triton: DirectTriton) -> None:
    labelled = server(triton, labels={"zone": "b"}, soft={"ram": 100 * MIB})
    async with controller([labelled], CATALOGUE, {"t0": triton.spec.admin_secret}) as running:
        await attached(running)
        drained = await command(running, "drain", "t0")
        assert (drained.status, drained.err) == (0, "")
        assert drained.out.startswith("t0 is DRAINING (an operator wants it drained), ")
        status = await command(running, "status")
        assert "DRAINING" in status.out
        assert "an operator wants it drained" in status.out
        assert "(soft limit 100 MiB)" in status.out
        assert "labels zone=b" in status.out
        assert "leaked" not in status.out
        fleet = running.loop.engine.fleet
        fleet.put_server(replace(fleet.servers["t0"], leaked={"ram": 30 * MIB}))
        assert ", 30 MiB leaked" in (await command(running, "status")).out
        absent = await command(running, "explain", "a", "--json")
        (verdict,) = absent.json["why"][0]["not_loaded"]["servers"]
        assert (verdict["possible"], verdict["reason"]) == (False, "an operator wants it drained")
        assert (await command(running, "undrain", "t0")).out.startswith("t0 is HEALTHY, ")
        again = await command(running, "explain", "a", "--json")
        assert again.json["why"][0]["not_loaded"]["servers"][0]["possible"]

        restarted = await command(running, "drain", "t0", "--restart", "--json")
        assert restarted.json["server"]["state_reason"] == "an operator wants it restarted"
        await until(running, lambda event: event.reason.startswith("empty, and to be restarted"))
        assert "waiting to be restarted" in (await command(running, "status")).out
        other = await command(running, "drain", "t9")
        assert (other.status, other.out) == (1, "")
        assert "[SERVER_NOT_FOUND]" in other.err


# --- without one ----------------------------------------------------------------------------------


async def test_what_may_not_be_loaded_says_why() -> None:
    async with controller(entries=CATALOGUE) as running:

        async def reason(model: str) -> str:
            request = wire.WhyNotLoadedRequest(name=f"models/{model}/versions/1")
            answer = await running.stub.WhyNotLoaded(request)
            return str(answer.reason)

        assert await reason("wrong") == "wrong:1 cannot be served: no config.pbtxt"
        assert (
            await reason("old") == "old:1 was rejected: `shoal approve old:1` has it answer again"
        )
        assert await reason("a") == (
            "nothing asks for a:1; no server takes it: no server is configured"
        )


async def test_what_is_not_there_is_refused() -> None:
    async with controller(entries=CATALOGUE) as running:
        calls = {
            wire.WhyResidentRequest: running.stub.WhyResident,
            wire.WhyEvictedRequest: running.stub.WhyEvicted,
            wire.WhyNotLoadedRequest: running.stub.WhyNotLoaded,
        }
        for request, call in calls.items():
            for name, reason in (
                ("models/nope", "MODEL_NOT_FOUND"),
                ("models/nope/versions/1", "MODEL_NOT_FOUND"),
                ("models/a/versions/9", "VERSION_NOT_FOUND"),
                ("a", "INVALID_NAME"),
            ):
                assert await refused(call(request(name=name))) == reason
        done = await command(running, "explain", "nope")
        assert (done.status, done.out) == (1, "")
        assert "[MODEL_NOT_FOUND]" in done.err


async def test_nobody_there_to_explain() -> None:
    parts = ("--registry", NO_REGISTRY, "--router", NO_ROUTER, "--controller", NO_CONTROLLER)
    done = await asyncio.to_thread(shoal, *parts, "explain", "a")
    assert (done.status, done.out) == (3, "")


async def test_evictions_come_page_by_page_the_newest_first() -> None:
    unit = Unit("a", 1)
    async with controller(entries=CATALOGUE) as running:
        for number in range(5):
            running.loop.journal.add(Record(Kind.EVICTING, f"{number}", "t0", unit))
            running.loop.journal.add(Record(Kind.UNLOADED, "gone", "t0", unit))
        told, token = [], ""
        for _ in range(3):
            request = wire.WhyEvictedRequest(name="models/a", page_size=2, page_token=token)
            page = await running.stub.WhyEvicted(request)
            told.append([eviction.event.reason for eviction in page.evictions])
            token = page.next_page_token
        assert (told, token) == ([["4", "3"], ["2", "1"], ["0"]], "")

        other = (await running.stub.ListEvents(wire.ListEventsRequest(page_size=1))).next_page_token
        stray = wire.WhyEvictedRequest(name="models/a", page_token=other)
        assert await refused(running.stub.WhyEvicted(stray)) == "INVALID_FIELD"


async def test_of_many_candidates_the_first_and_its_own_are_shown() -> None:
    rows = tuple(
        Weighed(Unit("a", number), False, {"idle_seconds": float(number)})
        for number in range(1, CANDIDATES + 11)
    )
    first, last = rows[0].unit, rows[-1].unit
    async with controller(entries=[entry("a", first.version, last.version)]) as running:
        for unit in (first, last):
            running.loop.journal.add(Record(Kind.EVICTING, "", "t0", unit, weighed=rows))

        async def shown(unit: Unit) -> list[str]:
            name = f"models/a/versions/{unit.version}"
            page = await running.stub.WhyEvicted(wire.WhyEvictedRequest(name=name))
            return [row.version for row in page.evictions[0].candidates]

        early, late = await shown(first), await shown(last)
        assert len(early) == len(late) == CANDIDATES
        assert early[:-1] == late[:-1]
        assert late[-1] == f"models/a/versions/{last.version}"
