"""From the queue to READY: placing, loading in turn, and what comes of it."""

from dataclasses import replace
from typing import Final

from services.common.errors import NeverFits, NoRoom, NoServer, ShoalError
from services.controller.core import (
    demand,
    draining,
    memory,
    placement,
    reconcile,
    residents,
    victims,
)
from services.controller.core import events as ev
from services.controller.core.entities import Health, Replica, ReplicaKey, Server, reservation
from services.controller.core.fleet import Failure, Fleet
from services.controller.core.memory import Memory
from services.controller.core.states import Cause, State, after
from services.controller.core.waiting import Want

FAIRNESS_SECONDS: Final = 2.0  # once a want waited so long, no younger one overtakes it


def loaded(fleet: Fleet, event: ev.Loaded, now: float) -> None:
    replica = fleet.at(event.key, event.attempt, State.LOADING)
    if replica is None:
        return
    fleet.failures.pop(replica.unit, None)
    reason = f"loaded in {event.seconds:.2f} s"
    fresh = replace(replica, load_seconds=event.seconds, last_used=now)
    fleet.move(fresh, Cause.LOADED, reason, now)
    fleet.record(
        ev.Kind.READY,
        reason,
        server=replica.key.server,
        unit=replica.unit,
        trace_id=demand.trace_of(fleet, replica.unit),
    )
    fleet.publish((replica.unit.model,))
    if replica.unit in fleet.specs:
        fleet.put(reconcile.resized(fleet, fleet.replicas[replica.key.server][replica.unit]))
    else:
        draining.withdraw_all(fleet, replica.unit, "it left the catalogue while loading", now)


def load_failed(fleet: Fleet, event: ev.LoadFailedOnServer, now: float) -> None:
    replica = fleet.at(event.key, event.attempt, State.LOADING)
    if replica is None:
        return
    unit, server = replica.unit, replica.key.server
    count = fleet.failures[unit].count + 1 if unit in fleet.failures else 1
    backoff = min(fleet.limits.backoff_seconds * 2 ** (count - 1), fleet.limits.max_backoff_seconds)
    failure = Failure(server, event.cause, now + backoff, count)
    fleet.failures[unit] = failure
    fleet.remove(replica, Cause.LOAD_FAILED, now)
    fleet.record(
        ev.Kind.LOAD_FAILED,
        event.cause,
        server=server,
        unit=unit,
        trace_id=demand.trace_of(fleet, unit),
    )
    fleet.publish((unit.model,))
    for wanted in list(fleet.wants):
        if wanted in fleet.specs and any(
            member.unit == unit for member in residents.group(fleet.specs[wanted], fleet.specs)
        ):
            demand.refuse_all(fleet, wanted, demand.load_failed(unit, failure, now), now)


def unloaded(fleet: Fleet, event: ev.Unloaded, now: float) -> None:
    replica = fleet.at(event.key, event.attempt, State.UNLOADING)
    if replica is not None:
        fleet.record(
            ev.Kind.UNLOADED,
            f"freed {memory.text(replica.reserved)}",
            server=replica.key.server,
            unit=replica.unit,
        )
        fleet.learn(replica)
        fleet.remove(replica, Cause.UNLOADED, now)


def place(fleet: Fleet, now: float) -> None:
    """Give every want without a place the best one, the oldest first."""
    for want in sorted(fleet.wants.values(), key=lambda want: want.order):
        if fleet.ready(want.unit) or holds_place(fleet, want):
            continue
        spec = fleet.specs[want.unit]
        views = [fleet.view(server) for server in fleet.servers.values()]
        decision = placement.place(spec, views, fleet.specs, fleet.limits, now)
        if isinstance(decision, placement.Place):
            take_place(fleet, want, decision, now)
        elif not give_up(fleet, want, decision, now):
            fleet.wants[want.unit] = replace(want, status=decision.reason)
            if want.waiters and now - want.since > FAIRNESS_SECONDS:
                return


def holds_place(fleet: Fleet, want: Want) -> bool:
    """Whether all that `want` needs is on its server or on its way there."""
    if want.server is None:
        return False
    here = fleet.replicas[want.server]
    coming = (State.QUEUED, State.LOADING, State.READY)
    return all(
        member.unit in here and here[member.unit].state in coming
        for member in residents.group(fleet.specs[want.unit], fleet.specs)
    )


def give_up(fleet: Fleet, want: Want, decision: placement.Decision, now: float) -> bool:
    """Refuse what waiting can't help. Says whether it was refused."""
    unit = want.unit
    if isinstance(decision, placement.Never):
        error: ShoalError = NeverFits(
            model=unit.model, version=unit.version, shortage=decision.reason
        )
    elif isinstance(decision, victims.Blocked):
        error = NoRoom(
            model=unit.model, version=unit.version, shortage=decision.reason, retry_after=5.0
        )
    elif (
        isinstance(decision, placement.NoServer)
        and now - max(fleet.healthy_at, want.since) > fleet.limits.server_patience_seconds
    ):
        error = NoServer(
            model=unit.model, version=unit.version, servers=decision.reason, retry_after=5.0
        )
    else:
        return False
    if want.desired:
        for waiter in want.waiters:
            demand.refuse(fleet, waiter, unit, error, want, now)
        fleet.wants[unit] = replace(want, waiters=(), status=decision.reason)
    else:
        demand.refuse_all(fleet, unit, error, now)
    return True


def take_place(fleet: Fleet, want: Want, choice: placement.Place, now: float) -> None:
    server = fleet.servers[choice.server]
    here = fleet.replicas[server.id]
    trace_id = want.waiters[0].trace_id if want.waiters else ""
    for unit in choice.victims:
        reason = (
            f"least recently used, idle {now - here[unit].last_used:.1f} s; room for {want.unit}"
        )
        draining.withdraw(fleet, here[unit], reason, want.unit, trace_id, now)
    reserved: list[Memory] = []
    for spec in choice.units:
        reserved.append(reservation(spec, server.budget, fleet.limits))
        here[spec.unit] = Replica(
            ReplicaKey(server.id, spec.unit),
            after(State.ABSENT, Cause.PLACED),
            reserved[-1],
            now,
            choice.reason,
            now,
        )
        fleet.record(
            ev.Kind.QUEUED, choice.reason, server=server.id, unit=spec.unit, trace_id=trace_id
        )
    fleet.wants[want.unit] = replace(
        want,
        server=server.id,
        reason=choice.reason,
        status=f"has a place on {server.id}",
        placed_at=now,
        victims=choice.victims,
        reserved_bytes=sum(memory.total(reserved).values()),
    )


def start_loads(fleet: Fleet, now: float) -> None:
    for server in fleet.servers.values():
        if server.health is not Health.HEALTHY:
            continue
        queued = [r for r in fleet.replicas[server.id].values() if r.state is State.QUEUED]
        for replica in sorted(queued, key=lambda replica: replica.since):
            reason = obstacle(fleet, replica, server)
            if reason is None:
                start(fleet, replica, now)
            else:
                fleet.put(replace(replica, reason=reason))


def obstacle(fleet: Fleet, replica: Replica, server: Server) -> str | None:
    """What the load waits for, or None when it may start."""
    here = fleet.replicas[server.id]
    spec = fleet.specs[replica.unit]
    loading = [r for r in here.values() if r.state is State.LOADING]
    for part in spec.requires:
        if part not in here or here[part].state is not State.READY:
            return f"waits for its part {part}"
    if fleet.changing(replica.key):
        return "waits for another change of the same model"
    other = residents.clashing(spec, here, fleet.specs)
    if other is not None:
        return f"waits until {other}, whose config differs, is gone"
    if len(loading) >= fleet.limits.loads_per_server:
        return f"waits for its turn behind {loading[0].unit}"
    if loading and not (
        spec.size_known
        and all(fleet.specs[r.unit].size_known for r in loading if r.unit in fleet.specs)
    ):
        return f"its size is unknown, or that of {loading[0].unit}, so they load one by one"
    if not memory.fits(memory.plus(fleet.occupied(server.id), replica.reserved), server.budget):
        return "waits until memory is free"
    taken = residents.slots_used(residents.occupied(here), fleet.specs)
    if server.max_models and taken + spec.slots > server.max_models:
        return "waits until a place is free"
    return None


def start(fleet: Fleet, replica: Replica, now: float) -> None:
    fleet.attempt += 1
    started = replace(replica, attempt=fleet.attempt)
    fleet.move(started, Cause.STARTED, "loading", now)
    others = fleet.applied(replica.key)
    versions = tuple(sorted({*others, replica.unit.version}))
    fleet.out.append(ev.Load(replica.key, fleet.attempt, versions))
    fleet.record(
        ev.Kind.LOADING,
        f"reserved {memory.text(replica.reserved)}",
        server=replica.key.server,
        unit=replica.unit,
        trace_id=demand.trace_of(fleet, replica.unit),
    )
    for unit, want in fleet.wants.items():
        if (
            want.server == replica.key.server
            and want.load_began is None
            and any(
                member.unit == replica.unit
                for member in residents.group(fleet.specs[unit], fleet.specs)
            )
        ):
            fleet.wants[unit] = replace(want, load_began=now, status=f"loading on {want.server}")
