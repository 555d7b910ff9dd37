"""Streams through a Router, next to the same streams on a Triton itself; the Tritons are real."""

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.common.caller import LOCAL
from services.common.errors import ModelNotFound
from services.router.core.routing.metadata import read_metadata
from services.router.servers.answers import TritonError
from services.router.streams import call as stream_call
from services.router.streams import replies as stream_replies
from services.router.unary.inference import Request
from tests.support.controllers import in_time, stub
from tests.support.streams import (
    ECHO,
    FRAIL,
    MANY,
    OTHER,
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

ALL = (ECHO, OTHER, FRAIL, SLOW, MANY, SUM)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def servers(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, DirectTriton]]:
    with two_servers(tmp_path_factory.mktemp("servers"), models, ALL) as servers:
        yield servers


def places(servers: dict[str, DirectTriton], **fields: Any) -> Places:
    return on_a(servers, ALL, **fields)


@asynccontextmanager
async def direct(server: DirectTriton) -> AsyncIterator[Callable[..., Talk]]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield lambda **call: Talk(channel, **call)


def by_model(replies: list[Any]) -> dict[str, list[Any]]:
    """An error that came at once names no model."""
    found = defaultdict(list)
    for reply in replies:
        found[reply.infer_response.model_name].append(reply)
    return found


# --- as a Triton itself ---------------------------------------------------------------------------

PLAIN = [
    *(ask(ECHO, number) for number in range(5)),
    ask(OTHER, 1, id_="x"),
    ask(ECHO, 5, id_="y", version="1"),
    ask(OTHER, 2, id_="x", finals=True),
    ask(ECHO, id_="nothing at all", shape=[0]),
    ask(ECHO, *range(3000), id_="much"),
    ask(SLOW, 0.05),
    ask(OTHER, 3),
]
WRONG = [
    ask(ECHO, 1, shape=[2], id_="shape"),
    ask(OTHER, 1),
    ask(SLOW, id_="of the model", shape=[0]),
    ask(SLOW, id_="of the model", shape=[0], version="1"),
    ask(SLOW, 0),
]
SEVERAL = [
    ask(MANY, 3, 0.001, id_="three"),
    ask(MANY, 0, 0, id_="none"),
    ask(MANY, 0, 0, id_="no more than the end", finals=True),
    ask(MANY, 2, 0, id_="and the end", finals=True, version="1"),
    ask(MANY, -1, 0, id_="with it", finals=False),
    ask(MANY, -1, 0, id_="with it, asked", finals=True),
    ask(MANY, -2, 0, id_="empty"),
    ask(MANY, -2, 0, id_="empty, asked", finals=True),
    ask(MANY, -3, 0, id_="wrong"),
    ask(MANY, -3, 0, id_="wrong, asked", finals=True),
    ask(MANY, 1, id_="shape", shape=[2]),
]


@pytest.mark.parametrize("requests", [PLAIN, WRONG], ids=["answers", "errors"])
async def test_replies_are_those_of_triton_in_the_order_of_each_model(
    servers: dict[str, DirectTriton], requests: list[Any]
) -> None:
    async with routed(places(servers, placed={OTHER: ["b"]})) as router:
        found = await router.talk().all(*requests)
        async with direct(servers["a"]) as talk:
            wanted = await talk().all(*requests)
        assert by_model(found) == by_model(wanted)
        assert router.counted(ECHO)[0] == sum(r.model_name == ECHO for r in requests)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_a_decoupled_model_gives_as_many_replies_as_it_would(
    servers: dict[str, DirectTriton], known: bool
) -> None:
    where = places(servers, untold=not known)
    async with routed(where) as router:
        for request in SEVERAL:  # one at a time: Triton mixes those that are under way together
            async with direct(servers["a"]) as talk:
                wanted = await talk().all(request)
            assert await router.talk().all(request) == wanted, request.id
        together = await router.talk().all(*SEVERAL)
        async with direct(servers["a"]) as talk:
            wanted = await talk().all(*SEVERAL)

        def by_id(replies: list[Any]) -> dict[str, list[Any]]:
            found = defaultdict(list)
            for reply in replies:
                found[reply.infer_response.id].append(reply)
            return found

        assert by_id(together) == by_id(wanted)
        refused = int(not known)  # Triton said that it is, to a request by itself
        assert router.counted(MANY) == (2 * len(SEVERAL) + refused, 6 + refused, 0)
        assert router.count("a", MANY) == 0


async def test_requests_without_ids_of_a_decoupled_model_all_end(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(places(servers)) as router:
        replies = await router.talk().all(*(ask(MANY, 3, 0.005) for _ in range(8)))
        assert sorted(numbers(reply) for reply in replies) == sorted([(0,), (1,), (2,)] * 8)
        assert (router.count("a", MANY), router.counted(MANY)) == (0, (8, 0, 0))


async def test_what_the_router_refuses_is_in_the_stream(servers: dict[str, DirectTriton]) -> None:
    where = places(servers, placed={"broken": []}, broken=frozenset({"broken"}))
    async with routed(where) as router:
        talk = router.talk()
        await talk.say(ask("nobody", 1, id_="7"))
        refused = await talk.hear()
        text = "Request for unknown model: 'nobody' is not found"
        assert refused.error_message.startswith(text)
        assert (refused.infer_response.id, refused.infer_response.model_name) == ("7", "")
        await talk.say(ask("broken", 1, id_="8"), ask(ECHO, 1), ask(ECHO, 1, version="9"))
        replies = await talk.rest()
        assert len(replies) == 3
        (told,) = (r for r in replies if r.infer_response.id == "8")
        assert "could not be loaded" in told.error_message
        assert router.counted("broken") == (1, 1, 1)


async def test_rubbish_is_refused_and_the_stream_goes_on(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(places(servers)) as router:
        method = "/inference.GRPCInferenceService/ModelStreamInfer"
        raw: Any = router.channel.stream_stream(method)
        finals = b"triton_enable_empty_final_response"
        odd = b"\x22\x26\x0a\x22" + finals + b"\x0a\x00"  # a parameter with two keys
        sound = [ask(MANY, -1, 0).SerializeToString(), ask(ECHO, 1).SerializeToString()]
        call = raw(iter([b"\xff\xff", sound[0] + odd, *sound]))
        replies = [reply async for reply in call]
        refused = [r for r in replies if b"not a valid inference.ModelInferRequest" in r]
        assert (len(replies), len(refused)) == (4, 2)


# --- many models, many servers --------------------------------------------------------------------


async def test_arms_of_a_policy_answer_by_one_name_and_in_order(
    servers: dict[str, DirectTriton],
) -> None:
    where = places(servers, placed={OTHER: ["b"]}, arms={"mixed": [(SLOW, 1), (OTHER, 1)]})
    async with routed(where) as router:
        replies = await router.talk().all(*(ask("mixed", 0.01 + n / 1000) for n in range(30)))
        assert [round(numbers(reply)[0], 3) for reply in replies] == [
            round(0.01 + n / 1000, 3) for n in range(30)
        ]
        assert {reply.infer_response.model_name for reply in replies} == {"mixed"}
        assert router.counted(SLOW)[0] + router.counted(OTHER)[0] == 30
        assert router.counted(SLOW)[0]
        assert router.counted(OTHER)[0]


async def test_a_slow_model_and_a_cold_one_hold_up_nobody(
    servers: dict[str, DirectTriton],
) -> None:
    where = places(servers, cold={OTHER: ["b"]})
    del where.placed[OTHER]
    async with routed(where) as router:
        talk = router.talk()
        await talk.say(ask(OTHER, 1), ask(OTHER, 2), ask(SLOW, 0.4), ask(ECHO, 3))
        assert numbers(await talk.hear()) == (3,)
        await until(lambda: where.asked)
        assert len((await talk.hear()).infer_response.raw_output_contents[0]) == 4
        where.loaded.set()
        assert [numbers(reply) for reply in await talk.rest()] == [(1,), (2,)]
        assert router.counted(OTHER) == (2, 0, 2)
        await until(lambda: where.told("started"))
        assert where.told("started")[0].use_lease == "lease"


async def test_what_is_not_resident_after_all_is_never_shown(
    servers: dict[str, DirectTriton],
) -> None:
    servers["a"].unload(ECHO)
    try:
        async with routed(places(servers, placed={ECHO: ["a", "b"]})) as router:
            where = router.places
            where.move(ECHO, "a")
            await until(lambda: router.watch.table.revision.number == 2)
            where.placed[ECHO] = ["a", "b"]
            replies = await router.talk().all(*(ask(ECHO, n, id_="same") for n in range(10)))
            assert [numbers(reply) for reply in replies] == [(n,) for n in range(10)]
            assert {asked.missed.server for asked in where.asked} == {"a"}
            assert router.counted(ECHO) == (10, 0, 10)
    finally:
        servers["a"].load(ECHO)


async def test_a_decoupled_model_that_is_not_resident_is_asked_elsewhere(
    servers: dict[str, DirectTriton],
) -> None:
    servers["a"].unload(MANY)
    try:
        where = places(servers)
        async with routed(where) as router:
            where.placed[MANY] = ["a", "b"]
            replies = await router.talk().all(*(ask(MANY, 2, 0.01) for _ in range(6)))
            assert sorted(numbers(reply) for reply in replies) == [(0,)] * 6 + [(1,)] * 6
            assert {asked.missed.server for asked in where.asked} == {"a"}
            assert router.counted(MANY) == (6, 0, 6)
    finally:
        servers["a"].load(MANY)


# --- eviction -------------------------------------------------------------------------------------


async def test_an_idle_stream_holds_up_no_eviction_and_a_busy_one_finishes(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(places(servers)) as router:
        where, talk = router.places, router.talk()
        await talk.say(ask(ECHO, 1))
        assert numbers(await talk.hear()) == (1,)
        where.move(ECHO, "b")
        await until(lambda: [d.replica.model for d in where.told("drained")] == [ECHO])

        await talk.say(ask(SLOW, 0.5))
        await until(lambda: router.count("a", SLOW))
        where.move(SLOW, "b")
        await until(lambda: router.watch.table.revision.number == 3)
        await talk.say(ask(SLOW, 0.0), ask(ECHO, 2))
        assert numbers(await talk.hear()) == (2,), "the other one waits for its turn"
        assert router.count("a", SLOW) == 1
        assert len(where.told("drained")) == 1
        assert [round(numbers(reply)[0], 1) for reply in await talk.rest()] == [0.5, 0.0]
        await until(lambda: len(where.told("drained")) == 2)
        assert where.asked == []


async def test_an_open_stream_does_not_keep_triton_from_unloading(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(places(servers)) as router:
        talk = router.talk()
        await talk.say(ask(MANY, 1, 0))
        await talk.hear()
        await asyncio.to_thread(servers["a"].unload, MANY)
        await asyncio.to_thread(servers["a"].load, MANY)
        assert len(await talk.all(ask(MANY, 1, 0))) == 1


async def test_a_sequence_stays_on_its_replica(servers: dict[str, DirectTriton]) -> None:
    async with routed(places(servers, placed={SUM: ["a", "b"]})) as router:
        talk = router.talk()
        ids: list[int | str] = [1, 2, 3, "one", "two", "three"]
        for turn in range(4):
            for id_ in ids:
                sequence = (id_, turn == 0, turn == 3)
                await talk.say(ask(SUM, turn + 1, sequence=sequence))
        replies = await talk.rest()
        assert [numbers(reply) for reply in replies] == [
            (total,) for total in (1, 3, 6, 10) for _ in ids
        ]
        assert router.watch.sequences.usage(time.monotonic()) == {}


@pytest.mark.parametrize("start", [True, False])
async def test_a_sequence_that_fails_before_it_began_is_tied_to_nothing(
    servers: dict[str, DirectTriton], start: bool
) -> None:
    async with routed(places(servers)) as router:
        talk = router.talk()
        for model in (MANY, SUM):
            await talk.say(ask(model, 1, shape=[2], sequence=(9, start, False)))
            assert "input" in (await talk.hear()).error_message
        assert router.watch.sequences.usage(time.monotonic()) == {}


# --- slow, gone, and half gone --------------------------------------------------------------------


async def test_a_client_that_does_not_read_slows_itself_alone(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(places(servers)) as router:
        small = (("grpc.http2.lookahead_bytes", 65_536),)
        async with grpc.aio.insecure_channel(router.address, options=small) as channel:
            lazy = Talk(channel)
            await lazy.say(*(ask(MANY, -4, 0, id_=str(n)) for n in range(6)))
            stream = await _writing(router)
            await until(lambda: stream._unsent_bytes >= stream_replies.MOST_UNSENT_BYTES)
            for n in range(50):
                (reply,) = await router.talk().all(ask(MANY, -1, 0, id_=str(n)))
                assert numbers(reply) == (7,)
            assert stream._unsent_bytes < stream_replies.MOST_UNSENT_BYTES + 200_000
            replies = await lazy.rest()
            assert len(replies) == 6 * 200


async def _writing(router: Routed) -> Any:
    """The outlet of the only stream."""
    calls = router.streams.calls._running
    await until(lambda: calls)
    (task,) = calls
    writing: Any = task.get_coro()
    return writing.cr_frame.f_locals["self"]._listener._replies


async def test_requests_wait_when_many_are_under_way(
    servers: dict[str, DirectTriton], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_replies, "MOST_PENDING", 3)
    async with routed(places(servers)) as router:
        talk = router.talk()
        saying = asyncio.create_task(talk.say(*(ask(MANY, 1, 0.1, id_=str(n)) for n in range(12))))
        most = 0
        for _ in range(12):
            await talk.hear()
            most = max(most, router.count("a", MANY))
        await saying
        assert await talk.rest() == []
        assert 1 <= most <= 3


async def test_a_client_that_goes_is_free_at_once_and_triton_finishes(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(places(servers)) as router:
        talk = router.talk()
        await talk.say(ask(MANY, 20, 0.05), ask(SLOW, 1))
        await talk.hear()
        began = time.monotonic()
        talk.call.cancel()
        await until(lambda: len(router.statistics.counts) == 2)
        assert router.counted(SLOW) == (1, 1, 0)
        assert (router.count("a", MANY), router.count("a", SLOW)) == (1, 1)
        assert router.counted(MANY) == (1, 1, 0)
        await until(lambda: not router.count("a", MANY) and not router.count("a", SLOW))
        assert time.monotonic() - began > 0.5
        await until(lambda: not router.streams.calls._running)
        await asyncio.to_thread(servers["a"].unload, MANY)
        servers["a"].load(MANY)


async def test_what_does_not_end_is_ended(
    servers: dict[str, DirectTriton], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_call, "PARTING_SECONDS", 0.2)
    async with routed(places(servers)) as router:
        talk = router.talk()
        await talk.say(ask(MANY, 1, 3.0))
        await until(lambda: router.count("a", MANY))
        talk.call.cancel()
        began = time.monotonic()
        await until(lambda: not router.count("a", MANY))
        assert 0.15 < time.monotonic() - began < 2.0


async def test_after_the_last_request_all_is_answered(servers: dict[str, DirectTriton]) -> None:
    async with routed(places(servers, placed={SLOW: ["b"]})) as router:
        replies = await router.talk().all(ask(SLOW, 0.3), ask(MANY, 5, 0.05), ask(ECHO, 1))
        assert len(replies) == 7
        assert await router.talk().all() == []


# --- errors that end the stream -------------------------------------------------------------------

STRICT = (("triton_grpc_error", "true"),)


async def test_an_error_ends_the_stream_for_who_asks_for_that(
    servers: dict[str, DirectTriton],
) -> None:
    """Triton's own way of it, which crashes Triton now and then."""
    async with routed(places(servers)) as router:
        for _ in range(20):
            talk = router.talk(metadata=STRICT)
            await talk.say(ask(ECHO, 1), ask(ECHO, 1, shape=[2], id_="7"))
            assert numbers(await talk.hear()) == (1,)
            assert "input byte size mismatch" in (await talk.hear()).error_message
            await talk.say(ask(MANY, 10, 0.01), ask(SLOW, id_="of the model", shape=[0]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await talk.rest()
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert (caught.value.details() or "").startswith("Failed to process the request(s)")
        assert router.counted(SLOW) == (20, 20, 0)


# --- one request, for other protocols -------------------------------------------------------------


async def test_the_replies_to_one_request(servers: dict[str, DirectTriton]) -> None:
    async with routed(places(servers)) as router:

        def responses(request: Any) -> AsyncGenerator[bytes, None]:
            message = request.SerializeToString()
            return router.streams.responses(Request(message, read_metadata(()), None, LOCAL))

        assert len([r async for r in responses(ask(MANY, 3, 0))]) == 3
        assert [r async for r in responses(ask(MANY, 0, 0))] == []
        assert len([r async for r in responses(ask(ECHO, 3, 0))]) == 1
        with pytest.raises(ModelNotFound):
            await anext(responses(ask("nobody", 1)))
        with pytest.raises(TritonError, match="input byte size mismatch") as caught:
            await anext(responses(ask(MANY, 1, shape=[2])))
        assert caught.value.error.code() is grpc.StatusCode.INVALID_ARGUMENT
        some = responses(ask(MANY, 100, 0.02))
        await anext(some)
        await some.aclose()
        assert router.count("a", MANY) == 1
        await in_time(until(lambda: not router.count("a", MANY)))


# --- what breaks ----------------------------------------------------------------------------------


async def test_a_dead_model_process_is_a_miss(servers: dict[str, DirectTriton]) -> None:
    where = places(servers, placed={FRAIL: ["a", "b"]})
    async with routed(where) as router:
        where.move(FRAIL, "a")
        await until(lambda: router.watch.table.revision.number == 2)
        where.placed[FRAIL] = ["a", "b"]
        os.kill(stub(servers["a"], FRAIL), signal.SIGKILL)
        (reply,) = await router.talk().all(ask(FRAIL, 4))
        assert numbers(reply) == (4,)
        assert [asked.missed_cause for asked in where.asked] == [1]
        assert where.told("broke") == []


async def test_a_lost_server_costs_one_repeat_at_most_and_others_nothing(
    servers: dict[str, DirectTriton],
) -> None:
    """The last test: it kills a server of all."""
    placed = {model: ["a", "b"] for model in (ECHO, MANY, SUM, SLOW)}
    where = places(servers, placed=placed, never_retried=frozenset({OTHER}))
    async with routed(where) as router:
        for model in placed:
            where.move(model, "a")
        where.move(ECHO, "b")
        await until(lambda: router.watch.table.revision.number == where.number)
        for model in (SLOW, OTHER, MANY, SUM):
            where.placed[model] = ["a", "b"]
        talk = router.talk()
        await talk.say(ask(SUM, 1, sequence=("s", True, False), id_="sequence"))
        assert numbers(await talk.hear()) == (1,)
        os.kill(stub(servers["a"], SUM), signal.SIGSTOP)
        os.kill(stub(servers["a"], OTHER), signal.SIGSTOP)
        await talk.say(
            ask(SLOW, 0.6, id_="repeated"),
            ask(SLOW, 0.0, id_="behind it"),
            ask(OTHER, 0, id_="not again"),
            ask(SUM, 1, sequence=("s", False, False), id_="sequence"),
            ask(MANY, 50, 0.1, id_="in part"),
        )
        assert (await talk.hear()).infer_response.id == "in part"
        await until(lambda: all(router.count("a", m) for m in (SLOW, OTHER, SUM, MANY)))
        servers["a"].process.kill()
        await talk.say(ask(ECHO, 5, id_="elsewhere"))
        replies = defaultdict(list)
        for reply in await talk.rest():
            replies[reply.infer_response.id].append(reply)
        for id_ in ("not again", "sequence", "in part"):
            assert "server a broke off" in replies[id_][-1].error_message, id_
        assert [len(replies[id_]) for id_ in ("not again", "sequence")] == [1, 1]
        order = [id_ for id_ in replies if id_ in ("repeated", "behind it")]
        assert order == ["repeated", "behind it"]
        assert not any(replies[id_][0].error_message for id_ in (*order, "elsewhere"))
        lost = {SLOW, OTHER, SUM, MANY}
        await until(lambda: {broke.replica.model for broke in where.told("broke")} == lost)
        told = {(broke.replica.model, broke.repeated) for broke in where.told("broke")}
        assert told == {(SLOW, True), (OTHER, False), (SUM, False), (MANY, False)}
        assert all(asked.missed.server == "a" for asked in where.asked)
        assert {asked.model for asked in where.asked} == {SLOW}
