"""Reactions to those who wait: joining, refusing, granting, and eviction on request."""

from collections.abc import Iterable

from services.common.errors import (
    DeadlineBeforeResident,
    LoadFailed,
    ModelNotFound,
    ShoalError,
    VersionNotFound,
)
from services.controller.core import draining
from services.controller.core import events as ev
from services.controller.core.entities import Replica, Unit
from services.controller.core.errors import DeadlineTooShort, Held, SetAside
from services.controller.core.failures import Failure
from services.controller.core.fleet import Fleet
from services.controller.core.states import Cause, State
from services.controller.core.waiting import Purpose, Waiter, Want, phases


def resident_wanted(fleet: Fleet, event: ev.ResidentWanted, now: float) -> None:
    unit = event.unit
    since = now - event.waited
    waiter = Waiter(event.waiter, event.deadline, since, event.router, event.trace_id)
    ready = fleet.ready(unit) if unit in fleet.known.specs else []
    if ready:
        want = Want(unit, since=now)
        answer(fleet, ready, want, waiter, now)
        return
    refusal = hopeless(fleet, unit, now) or too_short(fleet, waiter, unit, now)
    if refusal is not None:
        if isinstance(refusal, DeadlineTooShort):  # a later try is to find it resident
            until = now + 2 * (refusal.retry_after or 0.0)
            fleet.wants.want(unit, Purpose.REQUEST, now, until=until)
        refuse(fleet, waiter, unit, refusal, None, now)
        return
    fleet.wants.want(unit, Purpose.REQUEST if event.urgent else Purpose.PRELOAD, since)
    if event.urgent:
        fleet.habits.asked(unit, now)
    fleet.wants.wait(waiter, unit)


def want_kept(fleet: Fleet, now: float) -> None:
    """Want what is pinned or has a minimum of copies, though nobody waits for it."""
    for unit in sorted(fleet.known.kept):
        spec = fleet.known.specs[unit]
        if len(fleet.ready(unit)) < spec.kept and hopeless(fleet, unit, now) is None:
            why = "pinned" if spec.pinned else f"{spec.kept} copies are kept"
            fleet.wants.want(unit, Purpose.KEPT, now, target=spec.kept, why=why)


def hopeless(fleet: Fleet, unit: Unit, now: float) -> ShoalError | None:
    """The reason why waiting for `unit` is hopeless, or None where it may come."""
    spec = fleet.known.specs.get(unit)
    if spec is None:
        versions = sorted(known.version for known in fleet.known.versions.get(unit.model, ()))
        if not versions:
            return ModelNotFound(model=unit.model)
        return VersionNotFound(
            model=unit.model,
            version=unit.version,
            versions=", ".join(map(str, versions)),
        )
    for member in fleet.known.group(spec):
        for part in member.requires:
            if part not in fleet.known.specs:
                return hopeless(fleet, part, now)
        failure = failing(fleet, member.unit, now)
        if failure is not None:
            return why_failed(member.unit, failure, now)
    return None


def failing(fleet: Fleet, unit: Unit, now: float) -> Failure | None:
    """The failure because of which `unit` is not tried now; None where it may be, or is READY."""
    failure = fleet.failures.by_unit.get(unit)
    if failure is None or now >= failure.until or fleet.ready(unit):
        return None
    return failure


def too_short(fleet: Fleet, waiter: Waiter, unit: Unit, now: float) -> DeadlineTooShort | None:
    """The refusal of a waiter whose deadline is known to pass before the load is over, or None."""
    seconds = fleet.known.specs[unit].load_seconds
    if seconds is None:
        return None
    want = fleet.wants.by_unit.get(unit)
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
    fleet.wants.forget_waiter(event.waiter)


def refuse(
    fleet: Fleet, waiter: Waiter, unit: Unit, error: ShoalError, want: Want | None, now: float
) -> None:
    waited = phases(want, waiter, now) if want is not None else ()
    fleet.tell(ev.Refused(waiter.id, error, waited))
    fleet.record(ev.Kind.REFUSED, error.message, unit=unit, trace_id=waiter.trace_id)


def refuse_all(fleet: Fleet, unit: Unit, error: ShoalError, now: float) -> None:
    """Refuse all that wait for `unit`, which is no longer wanted."""
    want = fleet.wants.by_unit.get(unit)
    for waiter in fleet.wants.take_waiters(unit):
        refuse(fleet, waiter, unit, error, want, now)
    fleet.wants.drop(unit)
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
            fleet.tell(ev.Refused(event.waiter, error))
            return
    keys = tuple(replica.key for replica in targets)
    fleet.wants.wait_for_eviction(event.waiter, keys)
    for key in keys:
        replica = fleet.replicas[key.server][key.unit]
        if replica.state is State.READY:
            draining.withdraw(fleet, replica, ev.Why.REQUEST, "evicted on request", now)


def holder(fleet: Fleet, replica: Replica) -> str | None:
    """The reason why `replica` may not be evicted on request, or None where it may."""
    unit = replica.unit
    if replica.state is State.LOADING:
        return "it is being loaded: wait until it is ready, then evict it."
    if unit in fleet.known.pinned:
        return f"it is pinned: `shoal unpin {unit}` first."
    if unit in fleet.known.kept:
        return (
            f"it has a minimum of copies: `shoal residency {unit.model} --unset min-copies` first."
        )
    users = fleet.holders(unit, replica.key.server)
    if users:
        names = ", ".join(map(str, sorted(users)))
        return f"it is used by {names}: evict that first."
    return None


def settle(fleet: Fleet, now: float) -> None:
    """Answer those whose unit has become READY, and drop the wants that nobody has any longer."""
    wants = fleet.wants
    for unit in [*fleet.agenda.take_arrived(), *fleet.agenda.fresh]:
        want = wants.by_unit.get(unit)
        if want is None:
            continue
        ready = fleet.ready(unit)
        if ready:
            for waiter in wants.take_waiters(unit):
                answer(fleet, ready, want, waiter, now)
            if want.server is not None and any(r.key.server == want.server for r in ready):
                want = wants.unplace(want, want.status)  # for the next copy
        if len(ready) >= want.target or not still_wanted(fleet, want, now):
            wants.drop(unit)
            forsake(fleet, want, now)


def still_wanted(fleet: Fleet, want: Want, now: float) -> bool:
    if want.unit in fleet.wants.waiting or want.until > now:
        return True
    if want.purpose is Purpose.REQUEST:
        return False
    spec = fleet.known.specs.get(want.unit)
    return spec is not None and (want.purpose is not Purpose.KEPT or spec.kept > 0)


def forsake(fleet: Fleet, want: Want | None, now: float) -> None:
    """Give up the places of a want that was dropped, unless others need them."""
    if want is None or want.server is None or want.unit not in fleet.known.specs:
        return
    here = fleet.replicas[want.server]
    members = fleet.known.group(fleet.known.specs[want.unit])
    kept = [here[member.unit] for member in members if member.unit in here]
    give_up_unneeded(fleet, kept, now)


def give_up_unneeded(fleet: Fleet, places: Iterable[Replica], now: float) -> None:
    """Give up those of `places` that no want needs any longer and where nothing is loaded yet."""
    for replica in list(places):
        if replica.state is State.QUEUED and not fleet.wants.placed_at(replica.key):
            fleet.remove(replica, Cause.ABANDONED, now)


def answer(fleet: Fleet, ready: list[Replica], want: Want, waiter: Waiter, now: float) -> None:
    replica = min(ready, key=lambda r: (fleet.use(r.key).in_flight, r.key))
    lease = fleet.withdrawals.lend(replica.key, now) if waiter.router is not None else ""
    waited = phases(want, waiter, now)
    fleet.tell(ev.Granted(waiter.id, replica.key, fleet.revision, lease, waited))
    fleet.touch(replica.key, now, 0)


def finish_evictions(fleet: Fleet, now: float) -> None:
    if not fleet.wants.evictions:
        return
    for waiter, keys in list(fleet.wants.evictions.items()):
        left = fleet.wants.leaving[waiter]
        left.difference_update([key for key in left if fleet.replica(key) is None])
        if not left:
            fleet.tell(ev.Evicted(waiter, keys))
            fleet.wants.end_eviction(waiter)


def expire(fleet: Fleet, now: float) -> None:
    """Refuse the waiters whose deadline has come."""
    for unit, waiter in fleet.wants.take_overdue(now):
        want = fleet.wants.by_unit[unit]
        refuse(fleet, waiter, unit, too_late(want, waiter, now), want, now)


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
