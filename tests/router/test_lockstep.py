"""Streams to models of one reply each, where no model is decoupled; the Tritons are real."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from services.router.core.routing.routes import Replica, Target
from services.router.core.wire.request import overridden
from services.router.process.tuning import CHANNEL_OPTIONS
from services.router.servers import lockstep
from services.router.servers.lockstep import LockstepCalls, LockstepStream
from tests.router.test_streams import PLAIN, STRICT, WRONG, by_model, direct
from tests.support.controllers import stub
from tests.support.streams import (
    ECHO,
    FRAIL,
    MANY,
    OTHER,
    SECONDS,
    SLOW,
    SUM,
    Places,
    Routed,
    Talk,
    ask,
    numbers,
    on_a,
    routed,
    write_models,
)
from tests.support.triton_direct import DirectTriton, two_servers
from tests.support.waiting import until

pytestmark = pytest.mark.triton

MODELS = (ECHO, OTHER, FRAIL, SLOW, SUM)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, DirectTriton]]:
    models = write_models(tmp_path_factory.mktemp("models"))
    with two_servers(tmp_path_factory.mktemp("servers"), models, MODELS) as servers:
        yield servers


def places(servers: dict[str, DirectTriton], **fields: Any) -> Places:
    return on_a(servers, MODELS, **fields)


async def in_turns(talk: Talk, *requests: Any) -> list[Any]:
    """Each when the one before it is answered."""
    replies = []
    for request in requests:
        await talk.say(request)
        replies.append(await talk.hear())
    return replies


def calls(router: Routed) -> int:
    """To servers, that have not ended."""
    return len(router.streams.calls.lockstep._running)


# --- as a Triton itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("requests", [PLAIN, WRONG], ids=["answers", "errors"])
async def test_replies_are_those_of_triton(
    servers: dict[str, DirectTriton], requests: list[Any]
) -> None:
    async with routed(places(servers, placed={OTHER: ["b"]})) as router:
        async with direct(servers["a"]) as talk:
            asked = talk()  # and ended: a Triton keeps models of streams that are broken off
            wanted = await in_turns(asked, *requests)
            assert await asked.rest() == []
        talk_ = router.talk()
        await in_turns(talk_, *(ask(model, 0.0) for model in (ECHO, OTHER, SLOW)))
        before = router.statistics.streamed
        assert await in_turns(talk_, *requests) == wanted
        assert await talk_.rest() == []
        answered = sum(not reply.error_message for reply in wanted)
        assert router.statistics.streamed - before == answered
        assert by_model(await router.talk().all(*requests)) == by_model(wanted)
        assert router.counted(ECHO)[0] == 2 * sum(r.model_name == ECHO for r in requests) + 1
        await until(lambda: not calls(router))


async def test_what_comes_while_one_is_under_way_goes_alone_and_keeps_the_order(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(places(servers)) as router:
        talk = router.talk()
        await in_turns(talk, ask(SLOW, 0), ask(SLOW, 0))
        replies = await talk.all(*(ask(SLOW, 0.1 - n / 100) for n in range(8)))
        assert [round(numbers(reply)[0], 2) for reply in replies] == [
            round(0.1 - n / 100, 2) for n in range(8)
        ]
        assert 2 <= router.statistics.streamed <= 8
        assert router.counted(SLOW) == (10, 0, 0)


async def test_the_first_request_to_a_replica_goes_alone(servers: dict[str, DirectTriton]) -> None:
    async with routed(places(servers)) as router:
        talk = router.talk()
        for model in (ECHO, OTHER, ECHO, ECHO, OTHER):
            await in_turns(talk, ask(model, 1))
        assert (router.statistics.streamed, calls(router)) == (3, 2)


async def test_a_name_of_a_policy_is_kept(servers: dict[str, DirectTriton]) -> None:
    where = places(servers, arms={"mixed": [(ECHO, 1)]})
    async with routed(where) as router:
        replies = await in_turns(router.talk(), *(ask("mixed", n, id_=str(n)) for n in range(4)))
        told = [(r.infer_response.model_name, r.infer_response.id, numbers(r)) for r in replies]
        assert told == [("mixed", str(n), (n,)) for n in range(4)]
        assert router.statistics.streamed == 3


async def test_a_sequence_goes_on_by_a_stream(servers: dict[str, DirectTriton]) -> None:
    async with routed(places(servers, placed={SUM: ["a", "b"]})) as router:
        asked = [ask(SUM, n, sequence=("s", n == 1, n == 5)) for n in range(1, 6)]
        replies = await in_turns(router.talk(), *asked)
        assert [numbers(reply) for reply in replies] == [(1,), (3,), (6,), (10,), (15,)]
        assert router.statistics.streamed == 4
        assert router.watch.sequences.usage(time.monotonic()) == {}


async def test_who_wants_errors_with_codes_is_answered_alone(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(places(servers)) as router:
        talk = router.talk(metadata=STRICT)
        await in_turns(talk, *(ask(SLOW, 0) for _ in range(3)))
        await talk.say(ask(SLOW, shape=[0]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await talk.rest()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert router.statistics.streamed == 0


async def test_a_stream_has_only_so_many_calls(
    servers: dict[str, DirectTriton], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "MOST_CALLS", 2)
    async with routed(places(servers)) as router:
        talk = router.talk()
        for _ in range(3):
            await in_turns(talk, *(ask(model, 0) for model in (ECHO, OTHER, SLOW)))
        assert (router.statistics.streamed, calls(router)) == (4, 2)


async def test_all_streams_have_only_so_many_calls(
    servers: dict[str, DirectTriton], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "MOST_IN_ALL", 1)
    async with routed(places(servers)) as router:
        first, second = router.talk(), router.talk()
        await in_turns(first, *(ask(ECHO, n) for n in range(3)))
        replies = await in_turns(second, *(ask(ECHO, n) for n in range(3)))
        assert [numbers(reply) for reply in replies] == [(n,) for n in range(3)]
        assert (router.statistics.streamed, calls(router)) == (2, 1)
        assert await first.rest() == []
        await until(lambda: not calls(router))
        await in_turns(second, ask(ECHO, 1))
        assert router.statistics.streamed == 3


# --- only where none is decoupled -----------------------------------------------------------------


async def test_while_a_decoupled_model_is_there_all_go_alone(
    servers: dict[str, DirectTriton],
) -> None:
    where = places(servers)
    async with routed(where) as router:
        talk = router.talk()
        await in_turns(talk, *(ask(ECHO, n) for n in range(3)))
        await talk.say(ask(SLOW, 0), ask(SLOW, 0))
        assert [numbers(await talk.hear()) for _ in range(2)] == [(0,), (0,)]
        await talk.say(ask(SLOW, 0.5))
        await until(lambda: router.count("a", SLOW))
        before, under_way = router.statistics.streamed, calls(router)
        assert (before >= 2, under_way >= 1) == (True, True)

        where.move(MANY)
        await until(lambda: not router.watch.table.none_decoupled)
        await until(lambda: calls(router) == 0)
        assert round(numbers(await talk.hear())[0], 1) == 0.5, "it is let finish"
        counted = router.statistics.streamed
        replies = await in_turns(talk, *(ask(ECHO, n) for n in range(5)))
        assert [numbers(reply) for reply in replies] == [(n,) for n in range(5)]
        assert (router.statistics.streamed, calls(router)) == (counted, 0)

        del where.placed[MANY]
        where.move(ECHO, "a")
        await until(lambda: router.watch.table.none_decoupled)
        await in_turns(talk, *(ask(ECHO, n) for n in range(3)))
        assert (router.statistics.streamed, calls(router)) == (counted + 3, 1)


async def test_where_it_is_not_known_all_go_alone(servers: dict[str, DirectTriton]) -> None:
    async with routed(places(servers, untold=True)) as router:
        await in_turns(router.talk(), *(ask(ECHO, n) for n in range(3)))
        assert (router.statistics.streamed, calls(router)) == (0, 0)


async def test_what_a_triton_says_counts_more_than_the_table(
    servers: dict[str, DirectTriton],
) -> None:
    servers["b"].load(MANY)
    try:
        where = places(servers, placed={MANY: ["b"]}, decoupled=frozenset())
        async with routed(where) as router:
            talk = router.talk()
            await in_turns(talk, *(ask(ECHO, n) for n in range(3)))
            assert calls(router) == 1
            await talk.say(ask(MANY, 3, 0))
            assert [numbers(await talk.hear()) for _ in range(3)] == [(0,), (1,), (2,)]
            await until(lambda: calls(router) == 0)
            await in_turns(talk, *(ask(ECHO, n) for n in range(3)))
            assert (router.statistics.streamed, calls(router)) == (2, 0)
    finally:
        servers["b"].unload(MANY)


async def test_several_replies_are_none_to_a_plain_request(
    servers: dict[str, DirectTriton],
) -> None:
    servers["b"].load(MANY)
    replica, plain = Replica("b", Target(MANY, 1)), LockstepCalls(lambda: True)
    try:
        async with grpc.aio.insecure_channel(
            servers["b"].address, options=CHANNEL_OPTIONS
        ) as channel:
            stream = LockstepStream(plain)
            message = overridden(ask(MANY, 3, 0.01).SerializeToString(), None, 1)
            assert stream.send(replica, channel, message, ()) is None, "the first one"
            request = stream.send(replica, channel, message, ())
            assert request is not None
            async with asyncio.timeout(SECONDS):
                assert await request.code() is grpc.StatusCode.UNIMPLEMENTED
                with pytest.raises(grpc.aio.AioRpcError, match="decoupled transaction policy"):
                    await request
            await until(lambda: not plain._running)
            await plain.close()
    finally:
        servers["b"].unload(MANY)


# --- eviction, and what is left -------------------------------------------------------------------


async def test_an_idle_stream_holds_up_no_eviction(servers: dict[str, DirectTriton]) -> None:
    async with routed(places(servers)) as router:
        where, talk = router.places, router.talk()
        await in_turns(talk, *(ask(ECHO, n) for n in range(3)))
        assert calls(router) == 1
        where.move(ECHO, "b")
        await until(lambda: [d.replica.model for d in where.told("drained")] == [ECHO])
        await asyncio.to_thread(servers["a"].unload, ECHO)
        servers["a"].load(ECHO)
        replies = await in_turns(talk, *(ask(ECHO, n) for n in range(3)))
        assert [numbers(reply) for reply in replies] == [(n,) for n in range(3)]
        assert where.asked == []


async def test_a_call_that_is_not_used_is_closed(
    servers: dict[str, DirectTriton], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "IDLE_SECONDS", 0.2)
    async with routed(places(servers)) as router:
        talk = router.talk()
        await in_turns(talk, ask(ECHO, 1), ask(ECHO, 2))
        await until(lambda: not calls(router))
        await in_turns(talk, ask(ECHO, 3))
        assert (router.statistics.streamed, router.counted(ECHO)) == (2, (3, 0, 0))


async def test_a_client_that_goes_is_free_at_once_and_triton_finishes(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(places(servers)) as router:
        talk = router.talk()
        await in_turns(talk, ask(SLOW, 0), ask(SLOW, 0))
        began = time.monotonic()
        await talk.say(ask(SLOW, 1))
        await until(lambda: router.count("a", SLOW))
        talk.call.cancel()
        await until(lambda: router.counted(SLOW) == (3, 1, 0))
        assert (router.count("a", SLOW), calls(router)) == (1, 1)
        await until(lambda: not router.count("a", SLOW) and not calls(router))
        assert time.monotonic() - began > 1
        await asyncio.to_thread(servers["a"].unload, SLOW)
        servers["a"].load(SLOW)


async def test_clients_that_come_and_go_leave_nothing(servers: dict[str, DirectTriton]) -> None:
    async with routed(places(servers)) as router:

        async def visit(number: int) -> None:
            talk = router.talk()
            replies = await in_turns(talk, *(ask(ECHO, number) for _ in range(4)))
            assert [numbers(reply) for reply in replies] == [(number,)] * 4
            if number % 2:
                await talk.say(ask(ECHO, number))
                talk.call.cancel()
            else:
                assert await talk.rest() == []

        await visit(0)
        await until(lambda: not calls(router))
        tasks = len(asyncio.all_tasks())
        for turn in range(10):
            await asyncio.gather(*(visit(10 * turn + number) for number in range(10)))
        await until(lambda: not calls(router) and not router.count("a", ECHO))
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert router.statistics.streamed >= 300


# --- what breaks ----------------------------------------------------------------------------------


async def test_a_dead_model_process_is_a_miss(servers: dict[str, DirectTriton]) -> None:
    where = places(servers, placed={FRAIL: ["a", "b"]})
    async with routed(where) as router:
        where.move(FRAIL, "a")
        await until(lambda: router.watch.table.revision.number == 2)
        talk = router.talk()
        await in_turns(talk, ask(FRAIL, 1), ask(FRAIL, 2))
        where.placed[FRAIL] = ["a", "b"]
        os.kill(stub(servers["a"], FRAIL), signal.SIGKILL)
        (reply,) = await in_turns(talk, ask(FRAIL, 4))
        assert numbers(reply) == (4,)
        assert [asked.missed_cause for asked in where.asked] == [1]
        assert where.told("broke") == []


async def test_what_is_not_resident_after_all_is_never_shown(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(places(servers, placed={OTHER: ["a", "b"]})) as router:
        where, talk = router.places, router.talk()
        where.move(OTHER, "a")
        await until(lambda: router.watch.table.revision.number == 2)
        await in_turns(talk, ask(OTHER, 1), ask(OTHER, 2))
        where.placed[OTHER] = ["a", "b"]
        await asyncio.to_thread(servers["a"].unload, OTHER)
        try:
            (reply,) = await in_turns(talk, ask(OTHER, 3))
            assert numbers(reply) == (3,)
            assert {asked.missed.server for asked in where.asked} == {"a"}
        finally:
            servers["a"].load(OTHER)


async def test_a_lost_server_costs_one_repeat_at_most_and_the_idle_nothing(
    servers: dict[str, DirectTriton],
) -> None:
    """The last test: it kills a server of all."""
    where = places(servers, never_retried=frozenset({OTHER}))
    async with routed(where) as router:
        await until(lambda: router.watch.synchronized.is_set())
        for model in (SLOW, OTHER, ECHO):
            where.placed[model] = ["a", "b"]
        talks = {model: router.talk() for model in (SLOW, OTHER, ECHO)}
        for model, talk in talks.items():
            await in_turns(talk, ask(model, 0), ask(model, 0))
        os.kill(stub(servers["a"], OTHER), signal.SIGSTOP)
        before = router.statistics.streamed
        await talks[SLOW].say(ask(SLOW, 0.6))
        await talks[OTHER].say(ask(OTHER, 1))
        await until(lambda: all(router.count("a", model) for model in (SLOW, OTHER)))
        assert (calls(router), before) == (3, 3)
        servers["a"].process.kill()
        assert round(numbers(await talks[SLOW].hear())[0], 1) == 0.6
        assert "server a broke off" in (await talks[OTHER].hear()).error_message
        await until(lambda: not calls(router))
        (reply,) = await in_turns(talks[ECHO], ask(ECHO, 5))
        assert numbers(reply) == (5,)
        await until(lambda: {broke.replica.model for broke in where.told("broke")} == {SLOW, OTHER})
