"""Inference with both clients, against a server that answers as a test says."""

import asyncio
import itertools
import pickle
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.codes import Code
from services.common.errors import ShoalError
from services.router.core.errors import ServerLost
from shoal.client import (
    CallFailed,
    DeadlineExceeded,
    Internal,
    NotFound,
    Request,
    ResourceExhausted,
    Unavailable,
    connect,
    connect_async,
)
from shoal.client.operations import Attempt, Call, Operation, Pause, Work, attempts, run
from shoal.client.retries import Limits, pause
from tests.support.clients import KINDS, Seen, echoed, either, scripted, spanned

both = pytest.mark.parametrize("kind", KINDS)

INPUTS = {"INPUT": np.array([[1, 2, 3]], np.float32)}
PAUSE = 0.05  # seconds


class Busy(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "BUSY"
    template = "model '{model}' has {waiting} requests waiting."


def busy(retry_after: float | None = PAUSE) -> Busy:
    return Busy(model="m", waiting=7, retry_after=retry_after)


def refusing(times: int, error: ShoalError) -> Callable[[Seen], Awaitable[bytes]]:
    """Refuse so many times, then answer."""
    counted = itertools.count()

    async def answer(seen: Seen) -> bytes:
        if next(counted) < times:
            raise error
        return await echoed(seen)

    return answer


@both
async def test_an_answer(kind: str) -> None:
    async with scripted(echoed) as server, either(kind, router=server.address) as ask:
        result = await ask(
            "infer",
            "m",
            {**INPUTS, "TEXT": ["a", "é"]},
            version=2,
            id="seven",
            outputs={"INPUT": {"classification": 1}},
            parameters={"priority": 3},
            headers={"X-Tenant": "blue"},
        )
    assert (result.model, result.version, result.id, result.final) == ("m", "2", "seven", True)
    np.testing.assert_array_equal(result["INPUT"], INPUTS["INPUT"])
    assert result["TEXT"].tolist() == [b"a", "é".encode()]
    [seen] = server.seen
    assert seen.metadata["x-tenant"] == "blue"
    assert seen.request.parameters["priority"].int64_param == 3
    assert seen.request.outputs[0].parameters["classification"].int64_param == 1
    assert seen.left == pytest.approx(30, abs=1)


@both
async def test_a_refusal_that_offers_it_is_repeated(kind: str) -> None:
    async with scripted(refusing(2, busy())) as server, either(kind, router=server.address) as ask:
        result = await ask("infer", "m", INPUTS)
    assert result.model == "m"
    times = [seen.at for seen in server.seen]
    assert len(times) == 3
    assert all(later - earlier >= PAUSE for earlier, later in itertools.pairwise(times))


@both
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(busy(None), id="no RetryInfo"),
        # It may have been carried out.
        pytest.param(
            ServerLost(server="s", model="m", version=1, cause="gone", retry_after=PAUSE),
            id="server lost",
        ),
    ],
)
async def test_no_other_refusal_is_repeated(kind: str, error: ShoalError) -> None:
    async with scripted(refusing(1, error)) as server, either(kind, router=server.address) as ask:
        with pytest.raises(CallFailed) as caught:
            await ask("infer", "m", INPUTS)
    assert caught.value.reason == error.reason
    assert len(server.seen) == 1


@both
async def test_a_refusal_as_an_exception(kind: str) -> None:
    async with scripted(refusing(99, busy())) as server:
        async with either(kind, router=server.address, retries=2) as ask:
            with pytest.raises(ResourceExhausted) as caught:
                await ask("infer", "m", INPUTS)
        assert len(server.seen) == 3
        error = caught.value
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUSY")
        assert error.metadata == {"model": "m", "waiting": "7"}
        assert error.message == "model 'm' has 7 requests waiting."
        assert (error.retry_after, error.address) == (PAUSE, server.address)
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), vars(copy)) == (ResourceExhausted, vars(error))


@both
async def test_what_would_come_after_the_deadline_is_not_waited_for(kind: str) -> None:
    async with scripted(refusing(99, busy(5.0))) as server:
        async with either(kind, router=server.address) as ask, asyncio.timeout(4):
            with pytest.raises(ResourceExhausted):
                await ask("infer", "m", INPUTS, timeout=4)
        assert len(server.seen) == 1


@both
async def test_the_deadline_is_for_all_tries(kind: str) -> None:
    async with scripted(refusing(9999, busy(0.01))) as server:
        async with either(kind, router=server.address, retries=9999) as ask:
            with pytest.raises((ResourceExhausted, DeadlineExceeded)):
                await ask("infer", "m", INPUTS, timeout=0.5)
        assert len(server.seen) > 2
        assert server.seen[-1].at - server.seen[0].at < 0.5


@both
async def test_a_server_that_is_too_slow(kind: str) -> None:
    async def never(seen: Seen) -> bytes:
        await asyncio.sleep(60)
        raise AssertionError("nobody waited so long")

    async with scripted(never) as server, either(kind, router=server.address, timeout=0.2) as ask:
        with pytest.raises(DeadlineExceeded):
            await ask("infer", "m", INPUTS)


@both
async def test_nobody_there(kind: str) -> None:
    async with either(kind, router="127.0.0.1:1") as ask:
        with pytest.raises(Unavailable) as caught:
            await ask("infer", "m", INPUTS)
    assert caught.value.unreachable


@both
async def test_the_current_span_is_the_parent(kind: str) -> None:
    async with scripted(echoed) as server, either(kind, router=server.address) as ask:
        await ask("infer", "m", INPUTS)
        with spanned() as span:
            await ask("infer", "m", INPUTS)
            own = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
            await ask("infer", "m", INPUTS, headers=own)
    without, within, given_ = [seen.metadata.get("traceparent") for seen in server.seen]
    assert without is None
    assert within == f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    assert given_ == own["traceparent"]


@both
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"\x0a\x7f", "ends in the middle"),
        # An output without its contents, and one that does not fill its shape.
        (b"\x2a\x0c\x0a\x01A\x12\x04FP32\x1a\x01\x02", "1 outputs come with 0"),
        (b"\x2a\x0c\x0a\x01A\x12\x04FP32\x1a\x01\x02\x32\x04\0\0\0\0", "reshape"),
    ],
)
async def test_an_answer_that_cannot_be_read(kind: str, answer: bytes, problem: str) -> None:
    async def broken(seen: Seen) -> bytes:
        return answer

    async with scripted(broken) as server, either(kind, router=server.address) as ask:
        with pytest.raises(Internal, match=f"cannot be read: .*{problem}"):
            await ask("infer", "m", INPUTS)


@both
async def test_what_cannot_be_sent(kind: str) -> None:
    async with scripted(echoed) as server, either(kind, router=server.address) as ask:
        for inputs in ({"A": np.array(["2020-01-01"], "M8[D]")}, {"A": [object()]}):
            with pytest.raises(TypeError, match=r"^A: "):
                await ask("infer", "m", inputs)
        with pytest.raises(TypeError, match="parameter p"):
            await ask("infer", "m", INPUTS, parameters={"p": None})
        assert server.seen == []
    async with either(kind, registry="127.0.0.1:1") as ask:
        with pytest.raises(ValueError, match=r"connect\(router="):
            await ask("infer", "m", INPUTS)


# --- streams that a Triton of 24.10 does not survive ----------------------------------------------

ENDLESS = str(10**9)


@both
async def test_leaving_a_stream_early(kind: str) -> None:
    async with scripted(echoed) as server, either(kind, router=server.address) as ask:
        answers = await ask.first(3, "infer_stream", "m", INPUTS, id=ENDLESS)
        assert [answer["OUTPUT"].item() for answer in answers] == [0, 1, 2]
        async with asyncio.timeout(10):
            await server.left.wait()


@both
async def test_leaving_many_requests_early(kind: str) -> None:
    async with scripted(echoed) as server, either(kind, router=server.address) as ask:
        requests = (Request("m", INPUTS, id=ENDLESS) for _ in range(2))
        answers = await ask.first(1, "infer_many", requests)
        assert [answer.id for answer in answers] == [ENDLESS]
        async with asyncio.timeout(10):
            await server.left.wait()


@both
@pytest.mark.parametrize("name", ["infer_stream", "infer_many"])
async def test_a_deadline_for_a_whole_stream(kind: str, name: str) -> None:
    request = Request("m", INPUTS, id=ENDLESS)
    about = ("m", INPUTS) if name == "infer_stream" else ([request],)
    more = {"id": ENDLESS} if name == "infer_stream" else {}
    async with scripted(echoed) as server, either(kind, router=server.address) as ask:
        with pytest.raises(DeadlineExceeded):
            await ask.first(None, name, *about, **more, timeout=0.3)


@both
async def test_a_stream_that_is_refused_before_it_begins(kind: str) -> None:
    async with scripted(echoed) as server, either(kind, router=server.address) as ask:
        server.refusals = [busy(), busy()]
        answers = await ask.first(None, "infer_stream", "m", INPUTS, id="2", timeout=10)
        assert [answer["OUTPUT"].item() for answer in answers] == [0, 1]
        server.refusals = [busy(None)]
        with pytest.raises(ResourceExhausted):
            await ask.first(None, "infer_stream", "m", INPUTS, id="2")


# --- many at a time -------------------------------------------------------------------------------


async def test_threads_share_a_client() -> None:
    async with scripted(echoed) as server:
        with connect(router=server.address) as shoal, ThreadPoolExecutor(8) as pool:

            def ask(number: int) -> bool:
                result = shoal.infer("m", {"INPUT": np.full(9, number)}, id=str(number))
                return result.id == str(number) and bool((result["INPUT"] == number).all())

            loop = asyncio.get_running_loop()
            asked = [loop.run_in_executor(pool, ask, number) for number in range(100)]
            assert all(await asyncio.gather(*asked))


async def test_many_at_a_time_in_asyncio() -> None:
    async with scripted(echoed) as server, connect_async(router=server.address) as shoal:
        asked = [shoal.infer("m", {"INPUT": [number]}) for number in range(100)]
        results = await asyncio.gather(*asked)
    assert [result["INPUT"].tolist() for result in results] == [[n] for n in range(100)]


async def test_a_sequence_has_its_flags() -> None:
    async with scripted(echoed) as server, connect_async(router=server.address) as shoal:
        async with shoal.sequence("m", version=2, id="s") as sequence:
            for place in range(3):
                await sequence.infer(INPUTS, end=place == 2)
            with pytest.raises(ValueError, match="has ended"):
                await sequence.infer(INPUTS)
        flags = [
            tuple(
                seen.request.parameters[f"sequence_{name}"].bool_param for name in ("start", "end")
            )
            for seen in server.seen
        ]
        ids = {seen.request.parameters["sequence_id"].string_param for seen in server.seen}
    assert (flags, ids) == ([(True, False), (False, False), (False, True)], {"s"})


async def test_inside_a_sequence_nothing_is_repeated() -> None:
    counted = itertools.count()

    async def answer(seen: Seen) -> bytes:
        if next(counted) in (0, 2):
            raise busy()
        return await echoed(seen)

    async with scripted(answer) as server, connect_async(router=server.address) as shoal:
        sequence = shoal.sequence("m")
        await sequence.infer(INPUTS)
        with pytest.raises(ResourceExhausted):
            await sequence.infer(INPUTS)
        ids = {seen.request.parameters["sequence_id"].int64_param for seen in server.seen}
        assert (len(server.seen), len(ids)) == (3, 1)
        assert ids.pop() > 0


def test_a_sequence_that_is_left_open() -> None:
    async def left() -> None:
        async with scripted(echoed) as server:

            def ask() -> None:
                with connect(router=server.address) as shoal, shoal.sequence("m") as sequence:
                    sequence.infer(INPUTS)

            await asyncio.to_thread(ask)

    with pytest.raises(RuntimeError, match="end=True"):
        asyncio.run(left())


def test_each_try_has_what_is_left() -> None:
    timeouts: list[float] = []
    paused: list[float] = []

    def operation() -> Operation[str]:
        return (yield Call("inference", "ModelInfer", b"", timeout=9))

    def do(step: Attempt | Pause | Work) -> str | None:
        assert not isinstance(step, Work)
        if isinstance(step, Pause):
            paused.append(step.seconds)
            time.sleep(step.seconds)
            return None
        timeouts.append(step.timeout or 0.0)
        if len(timeouts) < 3:
            raise ResourceExhausted(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", retry_after=PAUSE)
        return "answered"

    limits = Limits(timeout=30, retries=2)
    assert run(attempts(operation(), limits), do) == "answered"
    assert timeouts[0] == pytest.approx(9, abs=0.01)
    for spent, earlier, later in zip(paused, timeouts, timeouts[1:], strict=False):
        assert PAUSE <= spent <= earlier - later


def test_statuses_that_are_not_shoals() -> None:
    class Refused(grpc.RpcError):
        code = staticmethod(lambda: grpc.StatusCode.NOT_FOUND)
        details = staticmethod(lambda: "Request for unknown model")
        trailing_metadata: Any = staticmethod(lambda: None)

    error = CallFailed.of(Refused(), "here:1")
    assert isinstance(error, NotFound)
    assert (error.reason, error.retry_after, str(error)) == (
        "",
        None,
        "NOT_FOUND: Request for unknown model",
    )


@given(
    st.floats(0, 1e6),
    st.integers(1, 20),
    st.floats(0, 1, exclude_max=True),
)
def test_a_pause_is_never_shorter_than_asked_for(
    retry_after: float, refused: int, draw: float
) -> None:
    wait = pause(retry_after, refused, draw)
    assert wait >= retry_after
    assert wait > 0
    assert wait <= pause(retry_after, refused + 1, draw)


def test_without_numpy_it_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "from shoal.client import connect\n"
        "try:\n"
        "    connect(router='127.0.0.1:1').infer('m', {'A': [1]})\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], timeout=60, check=True, capture_output=True, text=True
    )
    assert "shoal[client]" in run.stdout
