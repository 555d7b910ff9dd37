"""Explanations: why a version is where it is, had to leave, or is not loaded."""

import time
from collections.abc import Iterable
from itertools import islice
from typing import Final

from services.common import paging
from services.controller.api import messages
from services.controller.api.names import Names
from services.controller.core.entities import Unit
from services.controller.core.events import Weighed
from services.controller.core.explain import Absence, Stay, Verdict
from services.controller.core.failures import Failure
from services.controller.core.view import FleetView
from services.controller.registry.catalogue import ANSWERABLE
from services.controller.telemetry.journal import Entry, Journal
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.names import parse_version_name, server_name, version_name
from shoal.registry.v1 import types_pb2 as registry

CANDIDATES: Final = 20  # shown of an eviction

_KNOWN_FROM: Final = {
    registry.REQUIREMENT_SOURCE_UNSPECIFIED: "required",
    registry.REQUIREMENT_SOURCE_CONFIG: "declared",
    registry.REQUIREMENT_SOURCE_CODE: "named in its code",
    registry.REQUIREMENT_SOURCE_CALL: "learned from a call",
}


class Explanations:
    """Answers from the engine's state, the journal and the catalogue, as messages."""

    def __init__(self, view: FleetView, names: Names, journal: Journal) -> None:
        self._view = view
        self._names = names
        self._journal = journal

    def why_resident(self, unit: Unit) -> wire.WhyResidentResponse:
        """Explain each replica of the unit.

        Raises ModelNotFound, VersionNotFound.
        """
        stays = self._view.why_resident(unit, time.monotonic())
        if not stays:
            self._names.known(unit)
        return wire.WhyResidentResponse(replicas=[self._stay(stay) for stay in stays])

    def why_evicted(self, unit: Unit, request: wire.WhyEvictedRequest) -> wire.WhyEvictedResponse:
        """Explain the evictions that the journal remembers, the newest first.

        Raises ModelNotFound, VersionNotFound, InvalidField.
        """
        page = paging.page("evictions", request.page_size, request.page_token)
        before = page.after[1]
        newest = self._journal.evictions(unit)
        found = list(
            islice((e for e in newest if not before or e.event.sequence < before), page.size + 1)
        )
        if not found:
            self._names.known(unit)
        shown = found[: page.size]
        more = len(found) > page.size
        last = ("", shown[-1].event.sequence) if more else None
        return wire.WhyEvictedResponse(
            evictions=[_eviction(unit, entry) for entry in shown],
            next_page_token=paging.token("evictions", last) if last is not None else "",
        )

    def why_not_loaded(self, unit: Unit) -> wire.WhyNotLoadedResponse:
        """Explain why the unit is not READY, or on no more servers.

        A version that may not be loaded has a reason and nothing else. Raises ModelNotFound,
        VersionNotFound.
        """
        version = self._names.known(unit)
        if version is not None and version.state not in ANSWERABLE:
            return wire.WhyNotLoadedResponse(reason=_closed(unit, version))
        now = time.monotonic()
        absence = self._view.why_not_loaded(unit, now)
        response = wire.WhyNotLoadedResponse(
            reason=absence.reason + self._last_eviction(absence) + _needs(version),
            waiters=absence.waiters,
            turn=absence.turn,
            servers=[_verdict(verdict) for verdict in absence.verdicts],
        )
        if absence.failure is not None:
            response.failure.CopyFrom(_failure(absence.failure, now))
        return response

    def _last_eviction(self, absence: Absence) -> str:
        """Return why the unit is gone, where nothing is on its way to bring it back."""
        unit = absence.unit
        if (
            self._view.is_resident(unit)
            or self._view.is_wanted(unit)
            or absence.failure is not None
        ):
            return ""
        for entry in self._journal.evictions(unit):
            ago = max(0.0, time.time() - entry.event.time.ToNanoseconds() / 1e9)
            server = entry.event.server.partition("/")[2]
            return f"; {ago:.0f} s ago it was evicted from {server}: {entry.event.reason}"
        return ""

    def _stay(self, stay: Stay) -> wire.ReplicaExplanation:
        return wire.ReplicaExplanation(
            replica=messages.replica(self._view, stay.replica),
            placed=stay.placed,
            kept_by=stay.kept_by,
            eviction_turn=stay.turn,
            candidates=stay.candidates,
            weighed=stay.numbers,
        )


def _needs(version: registry.ModelVersion | None) -> str:
    """Return what a model that calls others needs beside it, and how that is known."""
    if version is None or version.ensemble or not version.requirements:
        return ""
    needed = (
        f"{Unit(*name)} ({_KNOWN_FROM[one.source]})"
        for one in version.requirements
        if (name := parse_version_name(one.version)) is not None
    )
    return f"; it needs beside it: {', '.join(needed)}"


def _closed(unit: Unit, version: registry.ModelVersion) -> str:
    if version.state == registry.VERSION_STATE_INVALID:
        return f"{unit} cannot be served: {version.invalid_reason}"
    if version.state == registry.VERSION_STATE_WAITING:
        return f"{unit} waits for a server to complete its config: {version.waiting_reason}"
    return f"{unit} was rejected: `shoal approve {unit}` has it answer again"


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
    """Return the first rows, and the unit's own in any case."""
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
