"""The engine's check of itself and its last events, asked of a Controller by gRPC and by the
command."""

import asyncio
import time

import grpc
import pytest

from services.controller.api.servicer import OPEN_METHODS, SERVICE
from services.controller.core.entities import Unit
from shoal.controller.v1 import controller_service_pb2 as wire
from tests.support.cli import NO_REGISTRY, NO_ROUTER, Done, shoal
from tests.support.controller import SECONDS, Alone, controller, entry


async def command(running: Alone, *arguments: object) -> Done:
    parts = ("--registry", NO_REGISTRY, "--router", NO_ROUTER)
    return await asyncio.to_thread(shoal, *parts, "--controller", running.address, *arguments)


async def refused(running: Alone) -> None:
    """Ask for a model that nobody knows."""
    request = wire.LoadModelRequest(name="models/unknown/versions/3")
    with pytest.raises(grpc.aio.AioRpcError):
        await running.stub.LoadModel(request, timeout=SECONDS)


async def test_the_last_events_come_with_what_was_decided() -> None:
    async with controller(entries=[entry("a", 1)]) as running:
        await refused(running)
        told = await running.stub.GetDiagnostics(wire.GetDiagnosticsRequest(), timeout=SECONDS)
        assert list(told.violations) == []
        assert (told.counts.versions, told.counts.servers, told.counts.waiters) == (1, 0, 0)
        assert told.counts.events >= len(told.events) >= 2
        (asked,) = [one for one in told.events if one.event.startswith("ResidentWanted(")]
        assert "unit=unknown:3" in asked.event
        assert asked.instructions[0].startswith("Refused(waiter=1, error=ModelNotFound: ")
        ago = time.time() - asked.time.ToNanoseconds() / 1e9
        assert 0 <= ago < SECONDS


async def test_what_is_broken_is_said_in_words() -> None:
    async with controller(entries=[entry("a", 1)]) as running:
        shown = await command(running, "diagnostics", "--limit", 1)
        assert (shown.status, shown.err) == (0, "")
        first, counts, _, headings, event, *_ = shown.out.splitlines()
        assert first == "Every invariant holds."
        assert "0 servers, 1 versions" in counts
        assert headings.split() == ["time", "event", "and", "instructions"]
        assert "(" in event
        running.loop.engine.fleet.known.pinned.add(Unit("b", 1))
        broken = "The index of pinned units does not match the specs."
        shown = await command(running, "diagnostics", "--limit", 0)
        assert shown.out.splitlines()[0] == f"broken: {broken}"
        document = (await command(running, "diagnostics", "--json")).json
        assert document["violations"] == [broken]
        assert document["counts"]["versions"] == 1
        assert document["events"][0].keys() == {"time", "event", "instructions"}


def test_only_administrators_may_ask() -> None:
    assert f"/{SERVICE}/GetDiagnostics" not in OPEN_METHODS
