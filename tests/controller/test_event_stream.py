"""Following events through the end of one Controller and the start of the next."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.controller.core.entities import Unit
from services.controller.core.events import Kind, Record
from services.controller.telemetry.journal import Journal
from shoal.controller.v1 import controller_service_pb2 as wire
from tests.support.cli import NO_REGISTRY, NO_ROUTER
from tests.support.controller import controller

ROOT = Path(__file__).parents[2]
SECONDS = 20.0
# Python takes no Ctrl-C where its parent ignores it, as a shell's background jobs do.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from shoal.cli.__main__ import main
sys.exit(main())
"""
M, OTHER = Unit("m", 1), Unit("other", 1)


def add(journal: Journal, *reasons: str, unit: Unit = M) -> None:
    for reason in reasons:
        journal.add(Record(Kind.READY, reason, "t0", unit))


async def told(journal: Journal, count: int, after: int, epoch: int = 0) -> list[str]:
    """The first `count` events that a follower is told, and then one that comes later."""
    async with asyncio.timeout(SECONDS), aclosing(journal.follow(after, epoch)) as events:
        found = [(await anext(events)).reason for _ in range(count)]
        coming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        add(journal, "coming")
        return [*found, (await coming).reason]


# --- the journal ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "epoch", "wanted"),
    [
        (0, 0, []),
        (2, 0, ["c", "d"]),
        (2, 5, ["c", "d"]),
        (4, 5, []),
        (-1, 0, ["a", "b", "c", "d"]),
        (2, 4, ["a", "b", "c", "d"]),  # of the Controller before: none of these was seen
        (0, 4, ["a", "b", "c", "d"]),
        (900, 4, ["a", "b", "c", "d"]),
        (900, 0, ["a", "b", "c", "d"]),  # this one has not had so many: it is of an earlier one
        (2, 6, []),  # a later one acts: what this one has is older
    ],
)
async def test_where_a_follower_begins(after: int, epoch: int, wanted: list[str]) -> None:
    journal = Journal(epoch=5)
    add(journal, *"abcd")
    assert await told(journal, len(wanted), after, epoch) == [*wanted, "coming"]


async def test_events_carry_their_epoch() -> None:
    journal = Journal(epoch=5)
    add(journal, "a")
    assert [(event.epoch, event.sequence) for event in journal.newest("")] == [(5, 1)]


# --- by gRPC --------------------------------------------------------------------------------------


async def test_a_watch_goes_on_where_the_last_one_broke() -> None:
    async with controller(epoch=2) as running:
        add(running.loop.journal, *"abc")
        stub = running.stub
        request = wire.WatchEventsRequest(after_sequence=1, after_epoch=2)
        assert await watched(stub, request, 2) == ["b", "c"]
        request = wire.WatchEventsRequest(after_sequence=2, after_epoch=1)
        assert await watched(stub, request, 3) == ["a", "b", "c"]


async def watched(stub: Any, request: wire.WatchEventsRequest, count: int) -> list[str]:
    stream = stub.WatchEvents(request, timeout=SECONDS)
    found = [(await stream.read()).event.reason for _ in range(count)]
    stream.cancel()
    return found


# --- by the command -------------------------------------------------------------------------------


@asynccontextmanager
async def following(address: str, *arguments: str) -> AsyncIterator[Process]:
    parts = ("--registry", NO_REGISTRY, "--router", NO_ROUTER, "--controller", address)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", COMMAND, *parts, "events", "--follow", *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def lines(process: Process, count: int) -> list[Any]:
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        return [json.loads(await process.stdout.readline()) for _ in range(count)]


async def said(process: Process) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(SECONDS):
        return (await process.stderr.readline()).decode()


async def test_events_are_followed_through_a_restart_of_the_controller() -> None:
    async with AsyncExitStack() as ends:
        first = await ends.enter_async_context(controller(epoch=1))
        add(first.loop.journal, "not the newest", "old")
        add(first.loop.journal, "of another model", unit=OTHER)
        async with following(first.address, "m", "-n", "1", "--json") as process:
            assert [event["reason"] for event in await lines(process, 1)] == ["old"]
            add(first.loop.journal, "new")
            assert [event["reason"] for event in await lines(process, 1)] == ["new"]
            await ends.aclose()
            assert (await said(process)).startswith("shoal: no Controller sends events now (")
            port = int(first.address.rpartition(":")[2])
            async with controller(epoch=2, port=port) as second:
                add(second.loop.journal, "after the restart")
                add(second.loop.journal, *["of another model"] * 5, unit=OTHER)
                add(second.loop.journal, "and more")
                found = await lines(process, 2)
                assert [(event["epoch"], event["sequence"]) for event in found] == [(2, 1), (2, 7)]
                again = "shoal: following events again, from Controller epoch 2\n"
                assert await said(process) == again
                process.send_signal(signal.SIGINT)
                async with asyncio.timeout(SECONDS):
                    assert await process.wait() == 130
