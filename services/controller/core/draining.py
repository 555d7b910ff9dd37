"""Reactions to Routers, and the withdrawal of replicas without failing a request."""

from collections.abc import Callable
from typing import Any

from services.controller.core import events as ev
from services.controller.core.entities import Replica, ReplicaKey, Unit
from services.controller.core.fleet import Fleet
from services.controller.core.states import Cause, State


def router_joined(fleet: Fleet, event: ev.RouterJoined, now: float) -> None:
    """Take in a Router. Until it has applied the newest table it may send by an older one, so every
    withdrawal that is under way waits for it."""
    if event.router in fleet.withdrawals.routers:
        forget_router(fleet, event.router)
    else:
        fleet.record(ev.Kind.ROUTER_JOINED, event.router)
    fleet.withdrawals.join(event.router, now)
    in_use = dict.fromkeys(event.in_use, ev.Usage(0.0, 1, 0))
    router_used(fleet, ev.RouterUsed(event.router, in_use), now)


def of_live_router(
    react: Callable[[Fleet, Any, float], None],
) -> Callable[[Fleet, Any, float], None]:
    """A reaction to what a live Router says, which also keeps it alive. A Router that was dropped
    has to join again: its table may be older than what has been unloaded meanwhile."""

    def reaction(fleet: Fleet, event: Any, now: float) -> None:
        if fleet.withdrawals.heard(event.router, now):
            react(fleet, event, now)

    return reaction


def router_acked(fleet: Fleet, event: ev.RouterAcked, now: float) -> None:
    fleet.withdrawals.acked(event.router, event.revision)


def router_drained(fleet: Fleet, event: ev.RouterDrained, now: float) -> None:
    fleet.withdrawals.drained(event.key, event.router, event.revision)


def router_started(fleet: Fleet, event: ev.RouterStarted, now: float) -> None:
    key = fleet.withdrawals.end_use_lease(event.use_lease)
    if key is not None and fleet.replica(key) is not None:
        fleet.touch(key, now, 0)


def router_used(fleet: Fleet, event: ev.RouterUsed, now: float) -> None:
    was = fleet.withdrawals.routers[event.router].in_use
    in_use: dict[ReplicaKey, tuple[int, int]] = {}
    for key, usage in event.usage.items():
        if fleet.replica(key) is None:
            continue
        fleet.touch(key, now - usage.age, usage.requests)
        if usage.in_flight or usage.sequences:
            in_use[key] = (usage.in_flight, usage.sequences)
            _count(fleet, key, was.get(key, (0, 0)), in_use[key])
    for key, counts in was.items():
        if key not in in_use:
            _count(fleet, key, counts, (0, 0))
    fleet.withdrawals.used(event.router, in_use)


def _count(fleet: Fleet, key: ReplicaKey, before: tuple[int, int], after: tuple[int, int]) -> None:
    """Count the change in what a Router has in flight on a replica: requests and sequences."""
    if before == after or fleet.replica(key) is None:
        return
    fleet.uses.count(key, after[0] - before[0], after[1] - before[1])
    if before[1] and not after[1]:
        fleet.agenda.look_at_server(key.server)


def forget_router(fleet: Fleet, router: str) -> None:
    view = fleet.withdrawals.leave(router)
    for key, counts in view.in_use.items():
        _count(fleet, key, counts, (0, 0))


def withdraw_all(fleet: Fleet, unit: Unit, why: ev.Why, reason: str, now: float) -> None:
    for replica in list(fleet.everywhere(unit)):
        if replica.state is State.READY:
            withdraw_family(fleet, replica, why, reason, now)
        elif replica.state is State.LOADING:  # it leaves once it is loaded
            fleet.amend(replica, broken=True)


def withdraw_family(fleet: Fleet, replica: Replica, why: ev.Why, reason: str, now: float) -> None:
    """Withdraw a replica, and all that need it on its server."""
    here = fleet.replicas[replica.key.server]
    for member in fleet.family(replica.unit, replica.key.server):
        if here[member].state is State.READY:
            withdraw(fleet, here[member], why, reason, now)


def withdraw(
    fleet: Fleet,
    replica: Replica,
    why: ev.Why,
    reason: str,
    now: float,
    *,
    for_unit: Unit | None = None,
    trace_id: str = "",
    weighed: tuple[ev.Weighed, ...] = (),
) -> None:
    """Withdraw a replica: the Routers are told now, the server once they have drained it."""
    fleet.move(replica, Cause.EVICTED, reason, now)
    fleet.publish((replica.unit.model,))
    fleet.withdrawals.begin(replica.key, fleet.revision, now)
    fleet.record(
        ev.Kind.EVICTING,
        reason,
        server=replica.key.server,
        unit=replica.unit,
        for_unit=for_unit,
        trace_id=trace_id,
        weighed=weighed,
        why=why,
    )


def finish_drains(fleet: Fleet, now: float) -> None:
    withdrawals = fleet.withdrawals
    if not withdrawals.drained_by_all:
        return
    for key in list(withdrawals.drained_by_all):
        if (
            withdrawals.over(key, now)
            and not fleet.holders(key.unit, key.server)
            and not fleet.changing(key)
        ):
            replica = fleet.replicas[key.server][key.unit]
            fleet.withdrawals.end(key)
            unload(fleet, replica, Cause.DRAINED, "drained", now)


def unload(fleet: Fleet, replica: Replica, cause: Cause, reason: str, now: float) -> None:
    key = replica.key
    fleet.move(replica, cause, reason, now)
    fleet.tell(ev.Unload(key, replica.attempt, fleet.applied(key)))
    fleet.record(ev.Kind.UNLOADING, reason, server=key.server, unit=key.unit)


def expire(fleet: Fleet, now: float) -> None:
    """Drop the Routers that were not heard from, and the use leases that have run out."""
    for router, silence in fleet.withdrawals.silent(now):
        forget_router(fleet, router)
        fleet.record(ev.Kind.ROUTER_LOST, f"{router} has not been heard from for {silence:.1f} s")
    fleet.withdrawals.expire(now)
