"""The placing of wants: the new ones at once, the others when something has changed."""

from collections.abc import Iterable
from typing import Final

from services.common.errors import ShoalError
from services.controller.core import demand, draining, memory, placement, slots, victims, words
from services.controller.core import events as ev
from services.controller.core.entities import Replica, ReplicaKey, Unit
from services.controller.core.errors import NeverFits, NoRoom, NoServer
from services.controller.core.fleet import Fleet
from services.controller.core.roster import LOOK_AT_ALL
from services.controller.core.sizing import reservation
from services.controller.core.states import COMING, Cause, State, after
from services.controller.core.victims import Blocked, Later, Terms, Wait
from services.controller.core.waiting import Purpose, Want

TRIES: Final = 16  # wants in the queue that are tried again at each event
COPY_VICTIM_SECONDS: Final = 60.0  # another copy evicts only what has been idle for so long


def place(fleet: Fleet, now: float) -> None:
    """Give every new want the best place, and try those that found none again on what changed."""
    agenda, wants = fleet.agenda, fleet.wants
    for key in agenda.take_displaced():
        for displaced in wants.placed_at(key):
            agenda.look_at_want(displaced.unit)
    by_unit = wants.by_unit
    fresh = [by_unit[unit] for unit in agenda.take_fresh() if unit in by_unit]
    for want in sorted(fresh, key=wants.order):
        if not has_place(fleet, want):
            wants.leave_queue(want.unit)
            if want.server is not None:  # something that it needs there is gone
                wants.put(want.unplaced(f"lost its place on {want.server}"))
                demand.forsake(fleet, want, now)
            try_to_place(fleet, by_unit[want.unit], None, now)
    if wants.unplaced and agenda.changed:
        place_queued(fleet, now)


def place_queued(fleet: Fleet, now: float) -> None:
    """Try the wants in the queue, in their turn, on the servers that have changed, while a load
    could begin there."""
    possible = [server for server in fleet.agenda.changed if fleet.servers[server].accepting]
    for _, unit in fleet.wants.unplaced[:TRIES]:
        possible = [server for server in possible if slots.none_free(fleet, server) is None]
        if not possible:
            return
        try_again(fleet, unit, possible, now)


def retry(fleet: Fleet, now: float) -> None:
    """Try some of the wants in the queue on every server: time alone may have made room."""
    most = TRIES * 4 if len(fleet.servers) <= LOOK_AT_ALL else 2
    for unit in fleet.wants.some_unplaced(most):
        try_again(fleet, unit, None, now, thorough=True)


def try_again(
    fleet: Fleet, unit: Unit, only: Iterable[str] | None, now: float, *, thorough: bool = False
) -> None:
    want = fleet.wants.by_unit.get(unit)
    if want is not None and not has_place(fleet, want):
        fleet.wants.leave_queue(want.unit)
        try_to_place(fleet, want, only, now, thorough=thorough)


def has_place(fleet: Fleet, want: Want) -> bool:
    """Return whether all that `want` needs is on its server or on its way there."""
    if want.server is None:
        return False
    here = fleet.replicas[want.server]
    return all(
        (replica := here.get(member.unit)) is not None and replica.state in COMING
        for member in fleet.known.group(fleet.known.specs[want.unit])
    )


def displace_last(fleet: Fleet, server: str, reason: str, now: float) -> bool:
    """Make a want that waits on `server` for a load look for another place: the last in turn.
    Returns False where none waits."""
    wants = {
        want
        for replica in fleet.replicas[server].values()
        if replica.state is State.QUEUED
        for want in fleet.wants.placed_at(replica.key)
    }
    if not wants:
        return False
    last = max(wants, key=fleet.wants.order)
    fleet.wants.unplace(last, reason)
    demand.forsake(fleet, last, now)
    return True


def terms(fleet: Fleet, want: Want, now: float) -> Terms:
    """The limits of what may be evicted for a want, by its purpose. A load that would serve nobody
    in time pushes out nothing that is in use."""
    if want.too_late:
        return Terms(idle_since=now - fleet.limits.headroom_idle_seconds)
    if want.purpose >= Purpose.KEPT:
        return Terms()
    if want.purpose is Purpose.COPY:
        return Terms(idle_since=now - COPY_VICTIM_SECONDS)
    return Terms(evict=False)


def try_to_place(
    fleet: Fleet, want: Want, only: Iterable[str] | None, now: float, *, thorough: bool = False
) -> None:
    spec = fleet.known.specs[want.unit]
    want = fleet.wants.note_lateness(want, now)
    limits = terms(fleet, want, now)
    decision = placement.place(fleet, spec, limits, now, only, thorough=thorough)
    if isinstance(decision, placement.Place):
        take_place(fleet, want, decision, now)
    elif only is not None:
        fleet.wants.enqueue(want)
    elif spare(fleet, want) and not isinstance(decision, Later):
        fleet.wants.drop(want.unit)
    elif not give_up(fleet, want, decision, now):
        want = fleet.wants.by_unit[want.unit]._replace(status=decision.reason)
        if not isinstance(decision, placement.Closed):
            want = want._replace(no_server_since=None)
        fleet.wants.put(want)
        fleet.wants.enqueue(want)
        if now - want.since > fleet.limits.claim_seconds and stuck(fleet, want, decision):
            claim(fleet, want)


def spare(fleet: Fleet, want: Want) -> bool:
    """Return whether a want takes spare room only, and is given up where there is none."""
    return want.purpose < Purpose.KEPT and want.unit not in fleet.wants.waiting


def stuck(fleet: Fleet, want: Want, decision: placement.Decision) -> bool:
    """Return whether a want needs a server to itself in order to find a place. Whoever waits for
    loads to end has a turn, and needs none until it has passed."""
    if isinstance(decision, Later):
        return fleet.wants.unplaced[0][1] == want.unit
    return isinstance(decision, Wait)


def claim(fleet: Fleet, want: Want) -> None:
    """Keep a server for a want that has waited for long: otherwise smaller newcomers would take
    each bit of room as it comes."""
    if want.unit in fleet.wants.claims.values():
        return
    members = fleet.known.group(fleet.known.specs[want.unit])
    possible = [
        server.id
        for server in fleet.servers.values()
        if server.accepting
        and server.id not in fleet.wants.claims
        and want.unit not in fleet.replicas[server.id]
        and placement.shortage(fleet, members, server) is None
        and victims.clears(fleet, server.id, members)
    ]
    if possible:
        best = max(possible, key=lambda server: (placement.room(fleet, server), server))
        fleet.wants.claim(best, want.unit)


def give_up(fleet: Fleet, want: Want, decision: placement.Decision, now: float) -> bool:
    """Refuse a want that waiting cannot help. Returns whether it was refused."""
    unit = want.unit
    if isinstance(decision, placement.Never):
        error: ShoalError = NeverFits(
            model=unit.model, version=unit.version, shortage=decision.reason
        )
    elif isinstance(decision, Blocked):
        error = NoRoom(
            model=unit.model, version=unit.version, shortage=decision.reason, retry_after=5.0
        )
    elif isinstance(decision, placement.Closed) and out_of_patience(fleet, want, now):
        error = NoServer(
            model=unit.model, version=unit.version, servers=decision.reason, retry_after=5.0
        )
    else:
        return False
    demand.refuse_all(fleet, unit, error, now)
    return True


def out_of_patience(fleet: Fleet, want: Want, now: float) -> bool:
    """Return whether no server that could hold it has taken anything for too long."""
    if want.no_server_since is None:
        fleet.wants.put(want._replace(no_server_since=now))
        return False
    return now - want.no_server_since > fleet.limits.server_patience_seconds


def take_place(fleet: Fleet, want: Want, choice: placement.Place, now: float) -> None:
    server = fleet.servers[choice.server]
    trace_id = fleet.wants.trace_of(want.unit)
    if choice.victims:
        weighed = victims.weighed(fleet, server.id, choice.victims, now)
        fleet.uses.evicted(choice.cost)
        for unit in choice.victims:
            evict_for(fleet, server.id, unit, want, trace_id, weighed, now)
    fleet.wants.give_claims_back(want.unit)
    needs = [reservation(spec, server.budget, fleet.limits) for spec in choice.units]
    need = memory.total(needs)
    reason = placement.reason(choice, need)
    placed, state = f"{want.why}: {reason}", after(State.ABSENT, Cause.PLACED)
    for spec, reserved in zip(choice.units, needs, strict=True):
        key = ReplicaKey(server.id, spec.unit)
        replica = Replica(
            key,
            state,
            reserved,
            now,
            reason,
            placed,
            slots=spec.slots,
            digest=spec.digest,
            fingerprint=spec.fingerprint,
        )
        fleet.uses.start(replica, now)
        fleet.put(replica)
        fleet.record(ev.Kind.QUEUED, reason, server=server.id, unit=spec.unit, trace_id=trace_id)
    placed_want = want._replace(
        server=server.id,
        reason=reason,
        status=f"has a place on {server.id}",
        placed_at=now,
        victims=choice.victims,
        reserved_bytes=sum(need.values()),
    )
    fleet.wants.put(placed_want)


def evict_for(
    fleet: Fleet,
    server: str,
    unit: Unit,
    want: Want,
    trace_id: str,
    weighed: tuple[ev.Weighed, ...],
    now: float,
) -> None:
    replica = fleet.replicas[server][unit]
    numbers = words.of_replica(victims.numbers(fleet, replica, now))
    least = "least recently used" if fleet.uses.by_age else "least worth"
    reason = f"{least} in the fleet ({numbers}); makes room for {want.unit}"
    draining.withdraw(
        fleet,
        replica,
        ev.Why.ROOM,
        reason,
        now,
        for_unit=want.unit,
        trace_id=trace_id,
        weighed=weighed,
    )
