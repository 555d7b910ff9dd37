"""Explains what would happen to a request now and why, by the rules that decide it."""

import time
from collections.abc import Mapping
from typing import NamedTuple

from services.router.admission.admission import Admission
from services.router.control.placement_watch import PlacementWatch
from services.router.core.admission.priority import HEADER, Priority, priority_of
from services.router.core.routing.lane import LaneRules, held_by, held_over_grpc, place
from services.router.core.routing.routes import Target, resolve, shares, why
from services.router.core.routing.sequences import home_server, policy_draw
from services.router.core.wire.request import Sequence
from services.router.servers.cancellation import Cancellations


class Question(NamedTuple):
    """A request to be explained. `headers` are its headers; `sequence` is the id of its sequence,
    or ""."""

    model: str
    version: str
    headers: Mapping[str, str]
    sequence: str
    tenant: str


class Explanation(NamedTuple):
    """What would happen to a request. `arms` are the versions that it may go to, each with its
    share of the traffic and the servers that have it."""

    arms: tuple[tuple[Target, float, tuple[str, ...]], ...]
    priority: Priority
    steps: tuple[str, ...]


class Explanations:
    """Explains requests. `rules` are those of the lane, or None if there is none."""

    def __init__(
        self,
        watch: PlacementWatch,
        admission: Admission,
        cancellations: Cancellations,
        rules: LaneRules | None = None,
    ) -> None:
        self._watch = watch
        self._admission = admission
        self._cancellations = cancellations
        self._rules = rules

    async def explain(self, asked: Question) -> Explanation:
        """Explain a request. Raises what `routes.resolve` raises, and InvalidField for headers that
        have no meaning."""
        found = self._targets(asked)
        who = self._admission.tenants.tenant(asked.tenant, time.monotonic())
        priority = priority_of(asked.headers.get(HEADER), 0, who.limit.priority)
        steps = [self._version_step(asked, found)]
        for target, _ in found:
            steps.append(self._placement_step(asked, target))
            if waiting := self._admission.waiting(target):
                steps.append(
                    f"{waiting} requests wait for {target}: this one, of priority "
                    f"{priority.label}, waits for its turn"
                )
        if self._rules is not None:
            steps.append(await self._lane_step(asked, self._rules))
        heard = "is heard from" if self._watch.connected else "is away; the table is kept"
        steps.append(f"the Controller {heard}, at {self._watch.table.revision}")
        arms = tuple((target, share, self._watch.table.servers(target)) for target, share in found)
        return Explanation(arms, priority, tuple(steps))

    def _targets(self, asked: Question) -> list[tuple[Target, float]]:
        routes = self._watch.table.routes
        if not asked.sequence:
            return shares(routes, asked.model, asked.version)
        drawn = policy_draw(Sequence(asked.sequence, start=True, end=False), 0.0)
        return [(resolve(routes, asked.model, asked.version, drawn), 1.0)]

    def _version_step(self, asked: Question, found: list[tuple[Target, float]]) -> str:
        routes, target = self._watch.table.routes, found[0][0]
        if asked.version or not routes[asked.model].arms:
            return why(routes, asked.model, asked.version, target)
        if asked.sequence:
            return f"the traffic policy sends all of sequence {asked.sequence} to {target}"
        arms = ", ".join(f"{share:.0%} {target}" for target, share in found)
        return f"no version was asked for, the traffic policy draws one: {arms}"

    def _placement_step(self, asked: Question, target: Target) -> str:
        servers = self._watch.table.servers(target)
        if not servers:
            entry = self._watch.table.entry(target)
            reason = entry.reason if entry is not None else "not registered"
            return f"{target} is not resident ({reason}): the Controller is asked"
        where = ", ".join(servers)
        if asked.sequence:
            place = self._sequence_place(asked, target)
            return f"{target} is resident on {where}: the sequence is {place}"
        if len(servers) > 1:
            return f"{target} is resident on {where}: the less busy of two drawn at random is used"
        return f"{target} is resident on {where}: the request is forwarded"

    async def _lane_step(self, asked: Question, rules: LaneRules) -> str:
        found = held_by(asked.headers, asked.sequence) or place(
            self._watch.table, asked.model, asked.version, rules
        )
        if isinstance(found, str):
            return f"router: {found}"
        addresses = self._watch.table.addresses
        bearing = {
            server
            for server in found.servers
            if server in addresses and await self._cancellations.bears(addresses[server])
        }
        straight = f"the proxy sends it straight to {' or '.join(found.servers)}"
        if held := held_over_grpc(found, bearing, rules):
            return f"lane over HTTP: {straight}; router over gRPC: {held} (see --lane on)"
        return f"lane: {straight}"

    def _sequence_place(self, asked: Question, target: Target) -> str:
        ids = (asked.sequence, int(asked.sequence)) if asked.sequence.isdecimal() else ()
        for id_ in ids or (asked.sequence,):
            tied = self._watch.sequences.replica(target, id_)
            if tied is not None:
                return f"tied to {tied.server}"
        return f"at home on {home_server(self._watch.table.servers(target), asked.sequence)}"
