"""Which Controller a Router follows, what it asks and tells it; the Tritons are real."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from pydantic import ValidationError

from services.router.api import inference
from services.router.control import placement_watch
from services.router.control.residents import ResidencyClient
from services.router.core.errors import ControllerUnavailable, NoLease, ServerLost
from services.router.core.routing.routes import Replica
from services.router.core.routing.table import Revision, Table
from services.router.core.wire.request import Sequence
from services.router.settings import Settings
from services.router.unary.forward import MODEL_INFER
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import placement_pb2
from tests.support.controllers import (
    MODEL,
    OTHER,
    TARGET,
    Router,
    Scripted,
    following,
    in_time,
    routed,
    stub,
)
from tests.support.grpc_servers import listening
from tests.support.triton_direct import DirectTriton
from tests.support.waiting import until

# --- who is followed ------------------------------------------------------------------------------


async def test_the_one_that_acts_is_followed_and_asked() -> None:
    standby, acting = Scripted(0), Scripted(1)
    standby.standby = True
    acting.servers = {"t0": "127.0.0.1:1"}
    async with following(standby, acting) as router:
        await until(lambda: router.follows(acting))
        grant = await in_time(router.resident())
        assert grant.revision == Revision(1, 1)
        assert (len(acting.asked), standby.asked) == (1, [])


async def test_a_silent_one_is_left_and_what_it_was_asked_is_asked_again() -> None:
    old, successor = Scripted(1), Scripted(2)
    successor.standby = True
    old.answering = False
    successor.servers = {"t0": "127.0.0.1:1"}
    async with following(old, successor) as router:
        await until(lambda: router.follows(old))
        waiting = router.resident()
        await until(lambda: old.asked)
        old.frozen.set()
        began = time.monotonic()
        await until(lambda: router.watch.acting is None)
        assert time.monotonic() - began < placement_watch.SILENCE_SECONDS + 1
        assert router.watch.table.routes, "the table is kept"
        assert not waiting.done()
        successor.standby = False
        assert (await in_time(waiting)).revision == Revision(2, 1)
        assert router.follows(successor)
        waited = [one.waited.ToNanoseconds() / 1e9 for one in (*old.asked, *successor.asked)]
        assert waited[0] < 1 < placement_watch.SILENCE_SECONDS - 1 < waited[-1], "it is told"


async def test_a_higher_epoch_is_preferred_to_one_that_still_talks() -> None:
    old, successor = Scripted(1), Scripted(2)
    successor.standby = True
    old.answering = False
    successor.servers = {"t0": "127.0.0.1:1"}
    async with following(old, successor) as router:
        await until(lambda: router.follows(old))
        waiting = router.resident()
        await until(lambda: old.asked)
        successor.standby = False
        assert (await in_time(waiting)).revision == Revision(2, 1)
        assert router.epoch == 2


async def test_a_lower_epoch_is_never_followed_again() -> None:
    old, successor = Scripted(1), Scripted(2)
    async with following(old, successor) as router:
        await until(lambda: router.follows(successor))
        tried = len(old.heard)
        successor.frozen.set()
        await until(lambda: router.watch.acting is None)
        old.servers = {"t0": "127.0.0.1:1"}
        with pytest.raises(ControllerUnavailable, match="no Controller that acts"):
            await ResidencyClient(router.watch, patience=1.0).make_resident(TARGET, None, None)
        assert old.asked == []
        assert {message.WhichOneof("message") for message in old.heard[tried:]} == {"subscribe"}
        assert router.epoch == 2


async def test_one_that_comes_back_in_its_epoch_is_followed_again() -> None:
    alone = Scripted(1)
    async with following(alone) as router:
        await until(lambda: router.follows(alone))
        alone.frozen.set()
        await until(lambda: router.watch.acting is None)
        alone.frozen.clear()
        await until(lambda: router.follows(alone))


def test_a_grant_of_an_earlier_epoch_is_outdated() -> None:
    table = Table(revision=Revision(2, 1))
    replica = Replica("t0", TARGET)
    assert table.outdated(replica, Revision(1, 9))
    assert not table.outdated(replica, Revision(2, 0))


def test_several_controllers_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().controllers == ["127.0.0.1:9102"]
    assert Settings().controller_patience is None, "each request's own deadline"
    monkeypatch.setenv("SHOAL_ROUTER_CONTROLLER", "a:1,b:2,a:1")
    assert Settings().controllers == ["a:1", "b:2"]
    monkeypatch.setenv("SHOAL_ROUTER_CONTROLLER_PATIENCE", "0")
    assert Settings().controller_patience == 0
    for wrong in ("a:1,", "a:1;b", "a:1,b", ""):
        monkeypatch.setenv("SHOAL_ROUTER_CONTROLLER", wrong)
        with pytest.raises(ValidationError):
            Settings()


def test_no_hedging_where_two_servers_would_write_to_the_same_memory() -> None:
    assert Settings(hedge_after=0.1).hedge_after == 0.1
    with pytest.raises(ValidationError, match="HEDGE_AFTER does not go with"):
        Settings(hedge_after=0.1, shared_memory=True)


# --- what it is told ------------------------------------------------------------------------------


async def test_requests_are_counted_since_they_were_told_last() -> None:
    acting = Scripted(1)
    replica = Replica("t0", TARGET)
    async with following(acting) as router:
        await until(lambda: router.follows(acting))
        for _ in range(3):
            router.watch.in_use.begin(replica)
        router.watch.in_use.end(replica)

        def rows() -> list[Any]:
            return [row for usage in acting.told("usage") for row in usage.replicas]

        await until(lambda: sum(row.requests for row in rows()) == 3)
        told = len(rows())
        await until(lambda: len(rows()) > told)
        assert sum(row.requests for row in rows()) == 3
        assert rows()[-1].in_flight == 2


# --- with Tritons ---------------------------------------------------------------------------------


async def arrived(router: Router, server: DirectTriton, *replicas: Replica) -> None:
    """Wait until the server has got requests for all of `replicas`: what is sent on one connection
    comes in the order in which it was sent."""
    await until(lambda: all(map(router.watch.in_use.count, replicas)))
    live: Any = router.channels.to(server.address).unary_unary(f"/{inference.SERVICE}/ServerLive")
    await in_time(live(b"", wait_for_ready=True))


@asynccontextmanager
async def slow_way(server: DirectTriton) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """An address on the way to the server, where requests are held until the event is set."""
    passes, front = asyncio.Event(), grpc.aio.server()
    async with grpc.aio.insecure_channel(server.address) as channel:
        forward: Any = channel.unary_unary(MODEL_INFER)

        async def answer(request: bytes, _: object) -> bytes:
            await passes.wait()
            return bytes(await forward(request))

        service, method = MODEL_INFER.strip("/").split("/")
        handlers: Any = {method: grpc.unary_unary_rpc_method_handler(answer)}
        front.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        async with listening(front) as address:
            yield address, passes


ON_A, ON_B = Replica("a", TARGET), Replica("b", TARGET)


@asynccontextmanager
async def hedging(
    servers: dict[str, DirectTriton], after: float | None
) -> AsyncIterator[tuple[Router, asyncio.Event]]:
    """The way to `a` is slow, and it is what every request is sent to first."""
    acting = Scripted(1)
    acting.placed = ["a", "b"]
    async with slow_way(servers["a"]) as (address, passes):
        acting.servers = {"a": address, "b": servers["b"].address}
        async with following(acting, hedge_after=after) as router:
            await until(lambda: router.follows(acting))
            for _ in range(100):
                router.watch.in_use.begin(ON_B)
            yield router, passes


@pytest.mark.triton
async def test_a_request_that_is_kept_waiting_is_answered_by_another_replica(
    lasting: dict[str, DirectTriton],
) -> None:
    async with hedging(lasting, 0.05) as (router, passes):
        budget, count = router.forwarder.budget, router.watch.in_use.count
        answers = [await in_time(router.infer()) for _ in range(3)]
        assert [answer.server for answer in answers] == ["b"] * 3
        assert budget.hedged == 3
        assert (count(ON_A), count(ON_B)) == (3, 100), (
            "what is left behind counts till it has ended"
        )
        passes.set()
        await until(lambda: count(ON_A) == 0)
        assert (await in_time(router.infer())).server == "a", "it was quick enough"
        assert budget.hedged == 3


@pytest.mark.triton
async def test_both_are_left_behind_by_a_caller_that_goes(lasting: dict[str, DirectTriton]) -> None:
    async with hedging(lasting, 0.05) as (router, passes):
        count = router.watch.in_use.count
        os.kill(stub(lasting["b"]), signal.SIGSTOP)
        try:
            leaver = asyncio.create_task(router.infer())
            await until(lambda: count(ON_B) == 101)
            leaver.cancel()
            await asyncio.gather(leaver, return_exceptions=True)
            assert (count(ON_A), count(ON_B)) == (1, 101)
        finally:
            os.kill(stub(lasting["b"]), signal.SIGCONT)
        passes.set()
        await until(lambda: (count(ON_A), count(ON_B)) == (0, 100))


@pytest.mark.triton
@pytest.mark.parametrize(
    ("after", "asked"),
    [
        (None, {}),
        (0.02, {"retry": False}),
        (0.02, {"sequence": Sequence(7, True, False)}),
    ],
    ids=["it is off", "it may not be repeated", "a sequence"],
)
async def test_what_is_not_hedged(
    lasting: dict[str, DirectTriton], after: float | None, asked: dict[str, Any]
) -> None:
    async with hedging(lasting, after) as (router, passes):
        waiting = asyncio.create_task(router.infer(**asked))
        done, _ = await asyncio.wait((waiting,), timeout=0.3)
        assert not done or waiting.result().server == "b", "a sequence may belong to the other one"
        passes.set()
        await in_time(waiting)
        assert router.forwarder.budget.hedged == 0


@pytest.mark.triton
async def test_no_hedge_is_sent_beyond_the_budget(lasting: dict[str, DirectTriton]) -> None:
    async with hedging(lasting, 0.02) as (router, passes):
        budget = router.forwarder.budget
        while budget.hedge(time.monotonic()):
            pass
        spent = budget.hedged
        waiting = asyncio.create_task(router.infer())
        await until(lambda: router.watch.in_use.count(ON_A) == 1)
        await asyncio.wait((waiting,), timeout=0.2)
        passes.set()
        assert (await in_time(waiting)).server == "a"
        assert budget.hedged == spent


@pytest.mark.triton
async def test_a_dead_model_process_is_a_miss(servers: dict[str, DirectTriton]) -> None:
    async with routed(servers) as (router, acting):
        os.kill(stub(servers["a"]), signal.SIGKILL)
        assert (await router.infer()).cold
        (asked,) = acting.asked
        assert asked.missed == placement_pb2.ReplicaRef(server="a", model=MODEL, version=1)
        assert asked.missed_cause == wire.MISS_CAUSE_UNHEALTHY
        with pytest.raises(ServerLost, match="not healthy"):
            await router.infer(retry=False)
        assert acting.told("broke") == []


@pytest.mark.triton
async def test_a_server_that_is_lost_with_a_request_is_told(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(servers) as (router, acting):
        os.kill(stub(servers["a"]), signal.SIGSTOP)
        os.kill(stub(servers["b"]), signal.SIGSTOP)
        asking = asyncio.create_task(router.infer())
        a, b = Replica("a", TARGET), Replica("b", TARGET)
        await arrived(router, servers["a"], a)
        servers["a"].process.kill()
        await arrived(router, servers["b"], b)
        servers["b"].process.kill()
        with pytest.raises(ServerLost):
            await in_time(asking)
        await until(lambda: len(acting.told("broke")) == 2)
        first, second = acting.told("broke")
        assert (first.replica.server, first.HasField("earlier")) == ("a", False)
        assert (second.replica.server, second.earlier.server) == ("b", "a")
        assert (first.repeated, second.repeated) == (True, False)
        (asked,) = acting.asked
        assert (asked.missed.server, asked.missed_cause) == ("a", wire.MISS_CAUSE_UNSPECIFIED)


@pytest.mark.triton
async def test_repeats_of_two_models_are_not_on_one_server_at_once(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(servers) as (router, acting):
        for server, target in itertools.product(servers.values(), (TARGET, OTHER)):
            os.kill(stub(server, target.model), signal.SIGSTOP)
        count = router.watch.in_use.count
        asking = {t: asyncio.create_task(router.infer(target=t)) for t in (TARGET, OTHER)}
        await arrived(router, servers["a"], Replica("a", TARGET), Replica("a", OTHER))
        servers["a"].process.kill()
        on_b = {target: Replica("b", target) for target in (TARGET, OTHER)}
        await until(lambda: len(acting.asked) == 2 and any(map(count, on_b.values())))
        first, second = sorted(on_b, key=lambda target: -count(on_b[target]))
        assert count(on_b[second]) == 0
        os.kill(stub(servers["b"], first.model), signal.SIGCONT)
        assert (await in_time(asking[first])).cold
        await arrived(router, servers["b"], on_b[second])
        servers["b"].process.kill()
        with pytest.raises(ServerLost):
            await in_time(asking[second])
        await until(lambda: len(acting.told("broke")) == 3)
        (again,) = (one for one in acting.told("broke") if one.HasField("earlier"))
        assert (again.replica.server, again.replica.model) == ("b", second.model)


@pytest.mark.triton
async def test_a_sequence_stays_on_its_replica(lasting: dict[str, DirectTriton]) -> None:
    async with routed(lasting, placed=("a", "b")) as (router, acting):

        def told() -> list[tuple[str, int, int]]:
            return [
                (row.replica.server, row.requests, row.sequences)
                for usage in acting.told("usage")
                for row in usage.replicas
            ]

        await until(lambda: sum(requests for _, requests, _ in told()) == 1)
        before = len(told())
        for turn in range(20):
            await router.infer(sequence=Sequence("s", turn == 0, False))
        await until(lambda: sum(requests for _, requests, _ in told()[before:]) == 20)
        replica = router.watch.sequences.replica(TARGET, "s")
        assert replica is not None
        assert {server for server, requests, _ in told()[before:] if requests} == {replica.server}
        await until(lambda: told()[-1][2] == 1)
        await router.infer(sequence=Sequence("s", False, True))
        heard = len(acting.told("usage"))
        await until(lambda: len(acting.told("usage")) > heard + 1)
        assert not any(row.sequences for row in acting.told("usage")[-1].replicas)


@pytest.mark.triton
async def test_a_withdrawn_replica_finishes_its_sequences(
    lasting: dict[str, DirectTriton],
) -> None:
    async with routed(lasting, placed=("a", "b")) as (router, acting):
        await router.infer(sequence=Sequence("s", True, False))
        tied = router.watch.sequences.replica(TARGET, "s")
        assert tied is not None
        await until(lambda: [row.sequences for row in acting.told("usage")[-1].replicas] == [1])
        acting.placed.remove(tied.server)
        await until(lambda: not router.watch.table.holds(tied))
        heartbeats = len(acting.told("usage"))
        assert not (await router.infer(sequence=Sequence("s", False, False))).cold
        await until(lambda: len(acting.told("usage")) > heartbeats + 2)
        assert router.watch.sequences.replica(TARGET, "s") == tied
        assert MODEL not in {one.replica.model for one in acting.told("drained")}
        await router.infer(sequence=Sequence("s", False, True))
        await until(lambda: MODEL in {one.replica.model for one in acting.told("drained")})


@pytest.mark.triton
async def test_no_sequence_begins_while_no_controller_is_heard_from(
    lasting: dict[str, DirectTriton],
) -> None:
    async with routed(lasting) as (router, acting):
        await router.infer(sequence=Sequence("s", True, False))
        acting.frozen.set()
        await until(lambda: router.watch.acting is None)
        assert not (await router.infer()).cold
        await router.infer(sequence=Sequence("s", False, True))
        with pytest.raises(NoLease):
            await router.infer(sequence=Sequence("t", True, False))
