"""What the journal keeps, and what it counts."""

import asyncio

import pytest

from services.controller.core.entities import Unit
from services.controller.core.events import Kind, Record, Weighed, Why
from services.controller.telemetry import journal as module
from services.controller.telemetry.journal import Journal
from shoal.controller.v1 import types_pb2

BUSY, QUIET = Unit("busy", 1), Unit("quiet", 3)


def evicting(unit: Unit, reason: str, for_unit: Unit | None = None) -> Record:
    weighed = (Weighed(unit, True, {"idle_seconds": 9.0}),)
    why = Why.REQUEST if for_unit is None else Why.ROOM
    return Record(Kind.EVICTING, reason, "t0", unit, for_unit, weighed=weighed, why=why)


def test_every_kind_has_its_name_in_the_protos() -> None:
    journal = Journal()
    for kind in Kind:
        journal.add(Record(kind, "because"))
    told = [types_pb2.EventKind.Name(event.kind) for event in journal.newest("")]
    assert told == [f"EVENT_KIND_{kind.name}" for kind in reversed(Kind)]
    assert journal.counts == dict.fromkeys(Kind, 1)


def test_events_are_told_about_a_model_a_version_or_a_server() -> None:
    journal = Journal()
    journal.add(Record(Kind.READY, "loaded", "t0", BUSY))
    journal.add(Record(Kind.READY, "loaded", "t1", Unit("busy", 2)))
    journal.add(Record(Kind.READY, "loaded", "t0", Unit("busybody", 1)))

    def sequences(about: str) -> list[int]:
        return [event.sequence for event in journal.newest(about)]

    assert sequences("") == [3, 2, 1]
    assert sequences("models/busy") == [2, 1]
    assert sequences("models/busy/versions/2") == [2]
    assert sequences("servers/t0") == [3, 1]
    assert sequences("models/other") == []


def test_a_quiet_model_keeps_its_last_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LENGTH", 10)
    monkeypatch.setattr(module, "MODELS", 2)
    journal = Journal()
    for number in range(module.LENGTH_PER_MODEL + 5):
        journal.add(Record(Kind.READY, f"{number}", "t0", QUIET))
    for _ in range(20):
        journal.add(Record(Kind.READY, "again", "t0", BUSY))
    kept = [event.reason for event in journal.newest("models/quiet")]
    assert kept == [str(number) for number in range(24, 4, -1)]
    assert len(list(journal.newest("models/busy"))) == 20, "each once, early and late ones"
    assert len(list(journal.newest(""))) == 10

    journal.add(Record(Kind.READY, "third", "t0", Unit("third", 1)))
    assert not list(journal.newest("models/quiet")), "those of so many models are kept"


def test_evictions_come_with_what_was_weighed() -> None:
    journal = Journal()
    journal.add(evicting(BUSY, "lru: idle 9.0 s; room for quiet:3", QUIET))
    journal.add(Record(Kind.UNLOADED, "unloaded", "t0", BUSY))
    journal.add(evicting(Unit("busy", 2), "evicted on request"))
    found = list(journal.evictions(BUSY))
    assert [entry.event.for_version for entry in found] == ["models/quiet/versions/3"]
    assert found[0].weighed == (Weighed(BUSY, True, {"idle_seconds": 9.0}),)
    assert journal.evictions_by == {"room": 1, "request": 1}


async def test_a_follower_is_told_of_everything_once() -> None:
    journal = Journal()
    for number in range(3):
        journal.add(Record(Kind.READY, f"{number}", "t0", BUSY))
    follower = journal.follow(1)
    told = [(await anext(follower)).reason, (await anext(follower)).reason]
    waiting = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    journal.add(Record(Kind.READY, "3", "t0", BUSY))
    assert [*told, (await waiting).reason] == ["1", "2", "3"]
    await follower.aclose()
