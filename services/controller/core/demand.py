"""Who waits for what: joining, refusing, granting, and eviction on request."""

from dataclasses import replace

from services.common.errors import (
    DeadlineBeforeResident,
    Held,
    LoadFailed,
    ModelNotFound,
    ShoalError,
    VersionNotFound,
)
from services.controller.core import draining, residents
from services.controller.core import events as ev
from services.controller.core.entities import Replica, ReplicaKey, Unit
from services.controller.core.fleet import Eviction, Failure, Fleet
from services.controller.core.routers import UseLease
from services.controller.core.states import Cause, State
from services.controller.core.waiting import Waiter, Want, phases


def resident_wanted(fleet: Fleet, event: ev.ResidentWanted, now: float) -> None:
    unit = event.unit
    waiter = Waiter(event.waiter, event.deadline, now, event.router, event.trace_id)
    refusal = hopeless(fleet, unit, now)
    if refusal is not None:
        refuse(fleet, waiter, unit, refusal, None, now)
        return
    want = fleet.wants.get(unit) or Want(unit, since=now)
    fleet.wants[unit] = want.joined(waiter)


def hopeless(fleet: Fleet, unit: Unit, now: float) -> ShoalError | None:
    """Why `unit` need not be waited for, or None where it may come."""
    if unit not in fleet.specs:
        versions = sorted(u.version for u in fleet.specs if u.model == unit.model)
        if not versions:
            return ModelNotFound(model=unit.model)
        return VersionNotFound(
            model=unit.model,
            version=unit.version,
            versions=", ".join(map(str, versions)),
        )
    if not fleet.ready(unit):
        for member in residents.group(fleet.specs[unit], fleet.specs):
            failure = fleet.failures.get(member.unit)
            if failure is not None and now < failure.until:
                return load_failed(member.unit, failure, now)
    return None


def waiter_gone(fleet: Fleet, event: ev.WaiterGone, now: float) -> None:
    fleet.evictions.pop(event.waiter, None)
    for unit, want in list(fleet.wants.items()):
        if any(waiter.id == event.waiter for waiter in want.waiters):
            fleet.wants[unit] = want.without(event.waiter)


def refuse(
    fleet: Fleet, waiter: Waiter, unit: Unit, error: ShoalError, want: Want | None, now: float
) -> None:
    waited = phases(want, waiter, now) if want is not None else ()
    fleet.out.append(ev.Refused(waiter.id, error, waited))
    fleet.record(ev.Kind.REFUSED, error.message, unit=unit, trace_id=waiter.trace_id)


def refuse_all(fleet: Fleet, unit: Unit, error: ShoalError, now: float) -> None:
    want = fleet.wants.pop(unit, None)
    for waiter in want.waiters if want is not None else ():
        refuse(fleet, waiter, unit, error, want, now)


def eviction_wanted(fleet: Fleet, event: ev.EvictionWanted, now: float) -> None:
    targets = [
        replica
        for here in fleet.replicas.values()
        for unit in event.units
        if (replica := here.get(unit)) is not None and replica.state is not State.QUEUED
    ]
    for replica in targets:
        reason = holder(fleet, replica)
        if reason is not None:
            error = Held(model=replica.unit.model, version=replica.unit.version, holder=reason)
            fleet.out.append(ev.Refused(event.waiter, error))
            return
    keys = tuple(replica.key for replica in targets)
    fleet.evictions[event.waiter] = Eviction(event.waiter, keys)
    for key in keys:
        replica = fleet.replicas[key.server][key.unit]
        if replica.state is State.READY:
            draining.withdraw(fleet, replica, "evicted on request", None, "", now)


def holder(fleet: Fleet, replica: Replica) -> str | None:
    """Why `replica` may not be evicted on request, or None where it may."""
    if replica.state is State.LOADING:
        return "it is being loaded: wait until it is ready, then evict it."
    if fleet.specs[replica.unit].pinned if replica.unit in fleet.specs else False:
        return f"it is pinned: `shoal unpin {replica.unit}` first."
    here = fleet.replicas[replica.key.server]
    users = residents.holders(replica.unit, here, fleet.specs)
    if users:
        names = ", ".join(map(str, sorted(users)))
        return f"it is used by {names}: evict that first."
    return None


def want_pinned(fleet: Fleet, now: float) -> None:
    for unit in sorted(fleet.pinned):
        want = fleet.wants.get(unit)
        if want is not None:
            fleet.wants[unit] = replace(want, desired=True)
        elif not fleet.ready(unit) and hopeless(fleet, unit, now) is None:
            fleet.wants[unit] = Want(unit, since=now, desired=True)


def abandon(fleet: Fleet, now: float) -> None:
    """Drop the wants that nobody has, and the places that were kept for them."""
    for unit, want in list(fleet.wants.items()):
        desired = want.desired and unit in fleet.specs and fleet.specs[unit].pinned
        if not want.waiters and not desired:
            del fleet.wants[unit]
    needed = {
        (want.server, member.unit)
        for unit, want in fleet.wants.items()
        if want.server is not None and unit in fleet.specs
        for member in residents.group(fleet.specs[unit], fleet.specs)
    }
    for here in fleet.replicas.values():
        for replica in list(here.values()):
            if replica.state is State.QUEUED and (replica.key.server, replica.unit) not in needed:
                fleet.remove(replica, Cause.ABANDONED, now)


def grant(fleet: Fleet, now: float) -> None:
    for unit, want in list(fleet.wants.items()):
        ready = fleet.ready(unit)
        if not ready:
            continue
        replica = min(ready, key=lambda r: (r.in_flight, r.key))
        for waiter in want.waiters:
            lease = lend(fleet, replica.key, waiter.router, now)
            fleet.out.append(
                ev.Granted(waiter.id, replica.key, fleet.revision, lease, phases(want, waiter, now))
            )
        fleet.touch(replica.key, now)
        del fleet.wants[unit]


def lend(fleet: Fleet, key: ReplicaKey, router: str | None, now: float) -> str:
    if router is None:
        return ""
    fleet.lease += 1
    lease = f"{key.server}-{fleet.lease}"
    held = UseLease(router, now + fleet.limits.use_lease_seconds)
    fleet.use_leases.setdefault(key, {})[lease] = held
    return lease


def finish_evictions(fleet: Fleet, now: float) -> None:
    for eviction in list(fleet.evictions.values()):
        present = [key for key in eviction.keys if fleet.replica(key) is not None]
        if not present:
            fleet.out.append(ev.Evicted(eviction.waiter, eviction.keys))
            del fleet.evictions[eviction.waiter]


def trace_of(fleet: Fleet, unit: Unit) -> str:
    """The trace of a request that waits for `unit`, or for something that it is a part of."""
    for want in (fleet.wants.get(unit), *fleet.wants.values()):
        if want is not None and want.waiters and want.unit in fleet.specs:
            members = residents.group(fleet.specs[want.unit], fleet.specs)
            if any(member.unit == unit for member in members):
                return want.waiters[0].trace_id
    return ""


def expire(fleet: Fleet, now: float) -> None:
    """Refuse the waiters whose deadline is here."""
    for unit, want in list(fleet.wants.items()):
        for waiter in want.waiters:
            if now >= waiter.deadline - fleet.limits.answer_margin_seconds:
                refuse(fleet, waiter, unit, too_late(want, waiter, now), want, now)
                fleet.wants[unit] = fleet.wants[unit].without(waiter.id)


def load_failed(unit: Unit, failure: Failure, now: float) -> LoadFailed:
    wait = max(0.0, failure.until - now)
    cause = failure.cause if failure.cause.endswith((".", "!", "?")) else failure.cause + "."
    return LoadFailed(
        model=unit.model,
        version=unit.version,
        server=failure.server,
        cause=cause,
        backoff_seconds=f"{wait:.0f}",
        retry_after=wait,
    )


def too_late(want: Want, waiter: Waiter, now: float) -> DeadlineBeforeResident:
    return DeadlineBeforeResident(
        model=want.unit.model,
        version=want.unit.version,
        waited_seconds=f"{now - waiter.since:.2f}",
        stage=want.status,
    )
