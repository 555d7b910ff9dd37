"""Who waits for what: joining, refusing, granting, and eviction on request."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from heapq import heappop, heappush

from services.common.errors import (
    DeadlineBeforeResident,
    LoadFailed,
    ModelNotFound,
    ShoalError,
    VersionNotFound,
)
from services.controller.core import draining
from services.controller.core import events as ev
from services.controller.core.entities import Replica, ReplicaKey, Unit
from services.controller.core.errors import DeadlineTooShort, Held, SetAside
from services.controller.core.fleet import Failure, Fleet
from services.controller.core.states import Cause, State
from services.controller.core.waiting import Purpose, Waiter, Want, phases


def resident_wanted(fleet: Fleet, event: ev.ResidentWanted, now: float) -> None:
    unit = event.unit
    waiter = Waiter(event.waiter, event.deadline, now, event.router, event.trace_id)
    ready = fleet.ready(unit) if unit in fleet.specs else []
    if ready:
        want = Want(unit, since=now)
        answer(fleet, ready, want, waiter, now)
        return
    refusal = hopeless(fleet, unit, now) or too_short(fleet, waiter, unit, now)
    if refusal is not None:
        if isinstance(refusal, DeadlineTooShort):  # a later try is to find it resident
            until = now + 2 * (refusal.retry_after or 0.0)
            wanted(fleet, unit, Purpose.REQUEST, now, until=until)
        refuse(fleet, waiter, unit, refusal, None, now)
        return
    wanted(fleet, unit, Purpose.REQUEST, now)
    if fleet.limits.predict and fleet.wall:
        fleet.patterns.used(unit, fleet.wall + now)
    fleet.waiting.setdefault(unit, {})[waiter.id] = waiter
    fleet.asked[waiter.id] = unit
    last = waiter.deadline - fleet.limits.answer_margin_seconds
    heappush(fleet.deadlines, (last, waiter.id))
    fleet.timers.at(last)


def wanted(
    fleet: Fleet,
    unit: Unit,
    purpose: Purpose,
    now: float,
    *,
    target: int = 1,
    until: float = 0.0,
    why: str = "",
) -> None:
    """Have `unit` READY on `target` servers; what is wanted already keeps its turn."""
    known = fleet.wants.get(unit)
    if known is None:
        fleet.wants[unit] = Want(unit, now, purpose, target, why or purpose.text, until)
        fleet.fresh[unit] = None
        return
    fresh = known._replace(target=max(known.target, target), until=max(known.until, until))
    if purpose > known.purpose:
        leave_queue(fleet, unit)
        fresh = fresh._replace(purpose=purpose, why=why or purpose.text)
        fleet.fresh[unit] = None
    fleet.wants[unit] = fresh


def want_kept(fleet: Fleet, now: float) -> None:
    """Pins and minima of copies are wanted though nobody waits for them."""
    for unit in sorted(fleet.kept):
        spec = fleet.specs[unit]
        if len(fleet.ready(unit)) < spec.kept and hopeless(fleet, unit, now) is None:
            why = "pinned" if spec.pinned else f"{spec.kept} copies are kept"
            wanted(fleet, unit, Purpose.KEPT, now, target=spec.kept, why=why)


def drop(fleet: Fleet, unit: Unit) -> None:
    """Nobody wants it any more, or it is where it was wanted."""
    want = fleet.wants.pop(unit, None)
    fleet.fresh.pop(unit, None)
    if want is not None:
        leave_queue(fleet, unit)
        give_claims_back(fleet, unit)


def enqueue(fleet: Fleet, want: Want) -> None:
    """It found no place: it is tried again in its turn."""
    turn = fleet.turns[want.unit] = order(fleet, want)
    insort(fleet.unplaced, turn)


def leave_queue(fleet: Fleet, unit: Unit) -> None:
    turn = fleet.turns.pop(unit, None)
    if turn is not None:
        del fleet.unplaced[bisect_left(fleet.unplaced, turn)]


def order(fleet: Fleet, want: Want) -> tuple[float, Unit]:
    spec = fleet.specs.get(want.unit)
    return want.order(spec.priority if spec is not None else 0, fleet.limits)


def give_claims_back(fleet: Fleet, unit: Unit) -> None:
    for server in [server for server, other in fleet.claims.items() if other == unit]:
        unclaim(fleet, server)


def unclaim(fleet: Fleet, server: str) -> None:
    del fleet.claims[server]
    fleet.changed[server] = None


def hopeless(fleet: Fleet, unit: Unit, now: float) -> ShoalError | None:
    """Why `unit` need not be waited for, or None where it may come."""
    spec = fleet.specs.get(unit)
    if spec is None:
        versions = sorted(known.version for known in fleet.versions.get(unit.model, ()))
        if not versions:
            return ModelNotFound(model=unit.model)
        return VersionNotFound(
            model=unit.model,
            version=unit.version,
            versions=", ".join(map(str, versions)),
        )
    for member in fleet.group(spec):
        for part in member.requires:
            if part not in fleet.specs:
                return hopeless(fleet, part, now)
        failure = failing(fleet, member.unit, now)
        if failure is not None:
            return why_failed(member.unit, failure, now)
    return None


def failing(fleet: Fleet, unit: Unit, now: float) -> Failure | None:
    """Why `unit` is not tried now; None where it may be, or answers somewhere."""
    failure = fleet.failures.get(unit)
    if failure is None or now >= failure.until or fleet.ready(unit):
        return None
    return failure


def too_short(fleet: Fleet, waiter: Waiter, unit: Unit, now: float) -> DeadlineTooShort | None:
    """Whether it is known already that the waiter can't wait for as long as the load takes."""
    seconds = fleet.specs[unit].load_seconds
    if seconds is None:
        return None
    want = fleet.wants.get(unit)
    began = want.load_began if want is not None and want.load_began is not None else now
    left = max(0.0, began + seconds - now)
    if now + left <= waiter.deadline:
        return None
    return DeadlineTooShort(
        model=unit.model,
        version=unit.version,
        left_seconds=f"{waiter.deadline - now:.2f}",
        load_seconds=f"{seconds:.2f}",
        retry_after=left,
    )


def waiter_gone(fleet: Fleet, event: ev.WaiterGone, now: float) -> None:
    fleet.evictions.pop(event.waiter, None)
    unit = fleet.asked.pop(event.waiter, None)
    if unit is not None:
        forget_waiter(fleet, unit, event.waiter)


def forget_waiter(fleet: Fleet, unit: Unit, waiter: int) -> None:
    waiting = fleet.waiting[unit]
    del waiting[waiter]
    if not waiting:
        del fleet.waiting[unit]
        fleet.fresh[unit] = None  # is it wanted still?


def refuse(
    fleet: Fleet, waiter: Waiter, unit: Unit, error: ShoalError, want: Want | None, now: float
) -> None:
    waited = phases(want, waiter, now) if want is not None else ()
    fleet.out.append(ev.Refused(waiter.id, error, waited))
    fleet.record(ev.Kind.REFUSED, error.message, unit=unit, trace_id=waiter.trace_id)


def refuse_all(fleet: Fleet, unit: Unit, error: ShoalError, now: float) -> None:
    """Refuse all that wait for `unit`; it is wanted no more."""
    want = fleet.wants.get(unit)
    for waiter in fleet.waiting.pop(unit, {}).values():
        del fleet.asked[waiter.id]
        refuse(fleet, waiter, unit, error, want, now)
    drop(fleet, unit)
    forsake(fleet, want, now)


def eviction_wanted(fleet: Fleet, event: ev.EvictionWanted, now: float) -> None:
    targets = [
        replica
        for unit in event.units
        for replica in fleet.everywhere(unit)
        if replica.state is not State.QUEUED
    ]
    for replica in targets:
        reason = holder(fleet, replica)
        if reason is not None:
            error = Held(model=replica.unit.model, version=replica.unit.version, holder=reason)
            fleet.out.append(ev.Refused(event.waiter, error))
            return
    keys = tuple(replica.key for replica in targets)
    fleet.evictions[event.waiter] = keys
    for key in keys:
        replica = fleet.replicas[key.server][key.unit]
        if replica.state is State.READY:
            draining.withdraw(fleet, replica, ev.Why.REQUEST, "evicted on request", now)


def holder(fleet: Fleet, replica: Replica) -> str | None:
    """Why `replica` may not be evicted on request, or None where it may."""
    unit = replica.unit
    if replica.state is State.LOADING:
        return "it is being loaded: wait until it is ready, then evict it."
    if unit in fleet.pinned:
        return f"it is pinned: `shoal unpin {unit}` first."
    if unit in fleet.kept:
        return (
            f"it has a minimum of copies: `shoal residency {unit.model} --unset min-copies` first."
        )
    users = fleet.holders(unit, replica.key.server)
    if users:
        names = ", ".join(map(str, sorted(users)))
        return f"it is used by {names}: evict that first."
    return None


def settle(fleet: Fleet, now: float) -> None:
    """Answer those whose unit is READY now, and drop the wants that nobody has."""
    for unit in [*fleet.arrived, *fleet.fresh]:
        want = fleet.wants.get(unit)
        if want is None:
            continue
        ready = fleet.ready(unit)
        if ready:
            for waiter in fleet.waiting.pop(unit, {}).values():
                del fleet.asked[waiter.id]
                answer(fleet, ready, want, waiter, now)
            if want.server is not None and any(r.key.server == want.server for r in ready):
                want = fleet.wants[unit] = want.unplaced(want.status)
                fleet.fresh[unit] = None  # for the next copy
        if len(ready) >= want.target or not still_wanted(fleet, want, now):
            drop(fleet, unit)
            forsake(fleet, want, now)
    fleet.arrived.clear()


def still_wanted(fleet: Fleet, want: Want, now: float) -> bool:
    if want.unit in fleet.waiting or want.until > now:
        return True
    if want.purpose is Purpose.REQUEST:
        return False
    spec = fleet.specs.get(want.unit)
    return spec is not None and (want.purpose is not Purpose.KEPT or spec.kept > 0)


def forsake(fleet: Fleet, want: Want | None, now: float) -> None:
    """Give up the places that were kept for a want that is no more, unless others need them."""
    if want is None or want.server is None or want.unit not in fleet.specs:
        return
    here = fleet.replicas[want.server]
    members = fleet.group(fleet.specs[want.unit])
    kept = [here[member.unit] for member in members if member.unit in here]
    give_up_unneeded(fleet, kept, now)


def give_up_unneeded(fleet: Fleet, places: Iterable[Replica], now: float) -> None:
    """Give up those of `places` that no want needs any more, where nothing is loaded yet."""
    for replica in list(places):
        if replica.state is State.QUEUED and not wants_there(fleet, replica.key):
            fleet.remove(replica, Cause.ABANDONED, now)


def wants_there(fleet: Fleet, key: ReplicaKey) -> list[Want]:
    """Those that are placed on the server and need the unit there."""
    wants = map(fleet.wants.get, with_users(fleet, key.unit))
    return [want for want in wants if want is not None and want.server == key.server]


def with_users(fleet: Fleet, unit: Unit) -> set[Unit]:
    """The unit and all of the catalogue that need it, directly or through others."""
    found = {unit}
    open_ = [unit]
    while open_:
        for user in fleet.users.get(open_.pop(), ()):
            if user not in found:
                found.add(user)
                open_.append(user)
    return found


def answer(fleet: Fleet, ready: list[Replica], want: Want, waiter: Waiter, now: float) -> None:
    replica = min(ready, key=lambda r: (fleet.use(r.key).in_flight, r.key))
    lease = lend(fleet, replica.key, waiter.router, now)
    waited = phases(want, waiter, now)
    fleet.out.append(ev.Granted(waiter.id, replica.key, fleet.revision, lease, waited))
    fleet.touch(replica.key, now, 0)


def lend(fleet: Fleet, key: ReplicaKey, router: str | None, now: float) -> str:
    if router is None:
        return ""
    fleet.lease += 1
    lease = f"{key.server}-{fleet.lease}"
    ends = now + fleet.limits.use_lease_seconds
    fleet.use_leases.setdefault(key, set()).add(lease)
    fleet.lease_keys[lease] = key
    heappush(fleet.lease_ends, (ends, lease))
    fleet.timers.at(ends)
    return lease


def finish_evictions(fleet: Fleet, now: float) -> None:
    for waiter, keys in list(fleet.evictions.items()):
        if all(fleet.replica(key) is None for key in keys):
            fleet.out.append(ev.Evicted(waiter, keys))
            del fleet.evictions[waiter]


def trace_of(fleet: Fleet, unit: Unit) -> str:
    """The trace of a request that waits for `unit`, or for something that it is a part of."""
    for wanted_unit in with_users(fleet, unit):
        for waiter in fleet.waiting.get(wanted_unit, {}).values():
            return waiter.trace_id
    return ""


def expire(fleet: Fleet, now: float) -> None:
    """Refuse the waiters whose deadline is here."""
    while fleet.deadlines and fleet.deadlines[0][0] <= now:
        _, id_ = heappop(fleet.deadlines)
        unit = fleet.asked.pop(id_, None)
        if unit is not None:
            waiter, want = fleet.waiting[unit][id_], fleet.wants[unit]
            refuse(fleet, waiter, unit, too_late(want, waiter, now), want, now)
            forget_waiter(fleet, unit, id_)


def fail(
    fleet: Fleet,
    unit: Unit,
    server: str,
    cause: str,
    seconds: tuple[float, float],
    now: float,
    *,
    set_aside: bool = False,
) -> Failure:
    """Have `unit` not tried again for a while. `seconds`: the first time, and at most; they double
    each time."""
    count = fleet.failures[unit].count + 1 if unit in fleet.failures else 1
    first, most = seconds
    until = now + min(first * 2 ** (count - 1), most)
    failure = fleet.failures[unit] = Failure(server, cause, until, count, set_aside)
    return failure


def why_failed(unit: Unit, failure: Failure, now: float) -> LoadFailed | SetAside:
    wait = max(0.0, failure.until - now)
    if failure.set_aside:
        return SetAside(
            model=unit.model,
            version=unit.version,
            cause=failure.cause,
            backoff_seconds=f"{wait:.0f}",
            retry_after=wait,
        )
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
