"""Why a version is where it is, had to leave, or is not loaded: proto ↔ core and journal."""

import time
from collections.abc import Iterable
from itertools import islice
from typing import Final

from services.common import paging
from services.common.errors import ModelNotFound, VersionNotFound
from services.controller import messages
from services.controller.catalog import ANSWERABLE, unit_of
from services.controller.core import explain
from services.controller.core.entities import Unit
from services.controller.core.events import Weighed
from services.controller.core.explain import Absence, Stay, Verdict
from services.controller.core.failures import Failure
from services.controller.core.fleet import Fleet
from services.controller.journal import Entry
from services.controller.loop import Loop
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.names import server_name, version_name
from shoal.registry.v1 import types_pb2 as registry

CANDIDATES: Final = 20  # of an eviction, that are shown


def why_resident(loop: Loop, unit: Unit) -> wire.WhyResidentResponse:
    """Raises ModelNotFound, VersionNotFound."""
    fleet = loop.engine.fleet
    stays = explain.why_resident(fleet, unit, time.monotonic())
    if not stays:
        _registered(loop, unit)
    return wire.WhyResidentResponse(replicas=[_stay(fleet, stay) for stay in stays])


def why_evicted(loop: Loop, unit: Unit, request: wire.WhyEvictedRequest) -> wire.WhyEvictedResponse:
    """Raises ModelNotFound, VersionNotFound, InvalidField."""
    page = paging.page("evictions", request.page_size, request.page_token)
    before = page.after[1]
    newest = loop.journal.evictions(unit)
    found = list(
        islice((e for e in newest if not before or e.event.sequence < before), page.size + 1)
    )
    if not found:
        _registered(loop, unit)
    shown = found[: page.size]
    more = len(found) > page.size
    return wire.WhyEvictedResponse(
        evictions=[_eviction(unit, entry) for entry in shown],
        next_page_token=paging.token("evictions", ("", shown[-1].event.sequence)) if more else "",
    )


def why_not_loaded(loop: Loop, unit: Unit) -> wire.WhyNotLoadedResponse:
    """Of a version that may not be loaded, the reason alone. Raises ModelNotFound,
    VersionNotFound."""
    version = _registered(loop, unit)
    if version is not None and version.state not in ANSWERABLE:
        return wire.WhyNotLoadedResponse(reason=_closed(unit, version))
    now = time.monotonic()
    absence = explain.why_not_loaded(loop.engine.fleet, unit, now)
    response = wire.WhyNotLoadedResponse(
        reason=absence.reason + _last_eviction(loop, absence),
        waiters=absence.waiters,
        turn=absence.turn,
        servers=[_verdict(verdict) for verdict in absence.verdicts],
    )
    if absence.failure is not None:
        response.failure.CopyFrom(_failure(absence.failure, now))
    return response


def _registered(loop: Loop, unit: Unit) -> registry.ModelVersion | None:
    """What the Registry says of it; None where only the engine knows it still."""
    version = loop.catalog.version(unit)
    if version is not None or unit in loop.engine.fleet.known.specs:
        return version
    entry = loop.catalog.entries.get(unit.model)
    if entry is None:
        raise ModelNotFound(model=unit.model)
    versions = ", ".join(str(unit_of(known).version) for known in entry.versions)
    raise VersionNotFound(model=unit.model, version=unit.version, versions=versions or "none")


def _closed(unit: Unit, version: registry.ModelVersion) -> str:
    if version.state == registry.VERSION_STATE_INVALID:
        return f"{unit} cannot be served: {version.invalid_reason}"
    return f"{unit} was rejected: `shoal approve {unit}` has it answer again"


def _last_eviction(loop: Loop, absence: Absence) -> str:
    """Why it is not there any more, where nothing is on its way to change that."""
    fleet, unit = loop.engine.fleet, absence.unit
    if unit in fleet.where or unit in fleet.wants.by_unit or absence.failure is not None:
        return ""
    for entry in loop.journal.evictions(unit):
        ago = max(0.0, time.time() - entry.event.time.ToNanoseconds() / 1e9)
        server = entry.event.server.partition("/")[2]
        return f"; it was evicted from {server} {ago:.0f} s ago: {entry.event.reason}"
    return ""


def _stay(fleet: Fleet, stay: Stay) -> wire.ReplicaExplanation:
    return wire.ReplicaExplanation(
        replica=messages.replica(fleet, stay.replica),
        placed=stay.placed,
        kept_by=stay.kept_by,
        eviction_turn=stay.turn,
        candidates=stay.candidates,
        weighed=stay.numbers,
    )


def _eviction(unit: Unit, entry: Entry) -> wire.EvictionExplanation:
    return wire.EvictionExplanation(
        event=entry.event,
        candidates=[
            wire.EvictionCandidate(
                version=version_name(*row.unit), evicted=row.evicted, weighed=row.numbers
            )
            for row in _shown(unit, entry.weighed)
        ],
    )


def _shown(unit: Unit, rows: tuple[Weighed, ...]) -> Iterable[Weighed]:
    """The first of them, its own among them whatever its place."""
    if len(rows) <= CANDIDATES or any(row.unit == unit for row in rows[:CANDIDATES]):
        return rows[:CANDIDATES]
    return [*rows[: CANDIDATES - 1], *(row for row in rows if row.unit == unit)]


def _verdict(verdict: Verdict) -> wire.ServerVerdict:
    return wire.ServerVerdict(
        server=server_name(verdict.server),
        holds=verdict.holds,
        possible=verdict.possible,
        reason=verdict.reason,
        score=verdict.score,
        victims=[version_name(*unit) for unit in verdict.victims],
    )


def _failure(failure: Failure, now: float) -> wire.LoadFailure:
    message = wire.LoadFailure(
        server=server_name(failure.server) if failure.server else "",
        cause=failure.cause,
        count=failure.count,
    )
    message.retry_after.FromMilliseconds(round(1000 * max(0.0, failure.until - now)))
    return message
