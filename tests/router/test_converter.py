"""Conversions in a process of their own."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import AsyncIterator
from typing import NoReturn

import psutil
import pytest
import pytest_asyncio
from tritonclient.grpc import model_config_pb2, service_pb2

from services.router.core.errors import ConverterLost
from services.router.core.rest.values import INVALID, WrongRequest
from services.router.rest import converter as module
from services.router.rest.converter import LARGE, Converter
from tests.support.waiting import until

MUCH = LARGE + 1
LONG = 600.0  # seconds


@pytest_asyncio.fixture
async def converter() -> AsyncIterator[Converter]:
    made = Converter(processes=2)
    yield made
    await made.close()


class Text(str):
    """One that may be referred to weakly."""


def refuse(text: str) -> NoReturn:
    raise WrongRequest(INVALID, text)


def fail() -> NoReturn:
    raise LookupError("no such thing")


def same(*given: object) -> tuple[object, ...]:
    return given


async def test_little_is_converted_here_and_much_elsewhere(converter: Converter) -> None:
    assert await converter.run(LARGE, os.getpid) == os.getpid()
    first = await converter.run(MUCH, os.getpid)
    assert first != os.getpid()
    assert await converter.run(MUCH, os.getpid) == first, "it is kept"


async def test_what_is_given_arrives_and_comes_back(converter: Converter) -> None:
    view = memoryview(bytes(range(256)) * 1000)[7:-7]
    response = service_pb2.ModelInferResponse(model_name="m", id="1")
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=4)
    found = await converter.run(MUCH, same, view, response, config, {"a": (1, None)})
    assert found == (view, response, config, {"a": (1, None)})


async def test_a_refusal_is_as_it_was(converter: Converter) -> None:
    with pytest.raises(WrongRequest) as caught:
        await converter.run(MUCH, refuse, "not like that")
    assert (caught.value.code, caught.value.text) == (INVALID, "not like that")
    before = await converter.run(MUCH, os.getpid)
    with pytest.raises(RuntimeError, match=r"in fail\n(.*\n)*LookupError: no such thing"):
        await converter.run(MUCH, fail)
    assert await converter.run(MUCH, os.getpid) == before


async def test_what_is_refused_is_let_go_of_at_once(converter: Converter) -> None:
    text = Text("it may be long")
    there = weakref.ref(text)
    gc.disable()
    try:
        with contextlib.suppress(WrongRequest):
            await converter.run(MUCH, refuse, text)
        del text
        await until(lambda: there() is None)
    finally:
        gc.enable()


async def test_a_process_that_ends_is_told_of_and_replaced(converter: Converter) -> None:
    with pytest.raises(ConverterLost, match=f"convert {MUCH} bytes"):
        await converter.run(MUCH, signal.raise_signal, signal.SIGKILL)
    pid = await converter.run(MUCH, os.getpid)
    process = psutil.Process(pid)
    process.kill()
    await until(lambda: process.status() == psutil.STATUS_ZOMBIE)
    assert await converter.run(MUCH, os.getpid) != pid, "nobody needed it when it ended"
    assert not psutil.pid_exists(pid)


async def test_one_that_cannot_start_is_told_of(
    converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(ConverterLost, match=r"did not start: .*/nowhere"):
            await converter.run(MUCH, os.getpid)
    assert await converter.run(MUCH, os.getpid)


async def test_whoever_no_longer_waits_stops_what_takes_long(
    converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = await converter.run(MUCH, os.getpid)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await converter.run(MUCH, time.sleep, 0.1)
    await until(lambda: not converter._running)
    assert await converter.run(MUCH, os.getpid) == pid, "it was done soon"
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.01)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await converter.run(MUCH, time.sleep, LONG)
    await until(lambda: not psutil.pid_exists(pid))
    assert await converter.run(MUCH, os.getpid) != pid


async def test_a_stop_ends_what_is_under_way() -> None:
    converter = Converter()
    pid = await converter.run(MUCH, os.getpid)
    waits = asyncio.ensure_future(converter.run(MUCH, time.sleep, LONG))
    await until(lambda: converter._running)
    await converter.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(asyncio.CancelledError):
        await waits


async def test_several_are_converted_at_once_and_no_more(
    converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.01)
    async with asyncio.TaskGroup() as tasks:
        long = tasks.create_task(converter.run(MUCH, time.sleep, LONG))
        pids = {await converter.run(MUCH, os.getpid) for _ in range(3)}
        assert len(pids) == 1, "beside the one that is busy"
        also = tasks.create_task(converter.run(MUCH, time.sleep, LONG))
        waits = tasks.create_task(converter.run(MUCH, os.getpid))
        done, _ = await asyncio.wait([waits], timeout=0.05)
        assert not done
        also.cancel()
        assert await waits not in pids
        long.cancel()


async def test_they_end_when_nobody_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)
    converter = Converter()
    pid = await converter.run(MUCH, os.getpid)
    await until(lambda: not psutil.pid_exists(pid))
    again = await converter.run(MUCH, os.getpid)
    await converter.close()
    assert not psutil.pid_exists(again)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_they_end_with_whoever_started_them(number: signal.Signals) -> None:
    program = """
        import asyncio, os, signal
        from services.router.rest.converter import LARGE, Converter

        async def main():
            print(await Converter().run(LARGE + 1, os.getpid), flush=True)
            await asyncio.Event().wait()

        signal.signal(signal.SIGINT, signal.default_int_handler)
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, process_group=0) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.killpg(parent.pid, number)  # as Ctrl-C does it to all
        try:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.wait(10)
        finally:
            parent.kill()
        said = parent.stderr.read()
    assert b"_serve" not in said
