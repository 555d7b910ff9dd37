"""Withdrawing a replica without failing a request: Routers' leases, acks and use."""

from collections.abc import Callable
from dataclasses import replace
from heapq import heappop
from typing import Any

from services.controller.core import events as ev
from services.controller.core.entities import Replica, ReplicaKey, Unit
from services.controller.core.fleet import Fleet
from services.controller.core.routers import Drain, RouterView, has_drained
from services.controller.core.states import Cause, State


def router_joined(fleet: Fleet, event: ev.RouterJoined, now: float) -> None:
    """Until it has applied the newest table it may send by an older one: every withdrawal that is
    under way waits for it."""
    if event.router in fleet.routers:
        forget_router(fleet, event.router)
    else:
        fleet.record(ev.Kind.ROUTER_JOINED, event.router)
    fleet.routers[event.router] = RouterView(now)
    watch_routers(fleet, now)
    in_use = dict.fromkeys(event.in_use, ev.Usage(0.0, 1, 0))
    router_used(fleet, ev.RouterUsed(event.router, in_use), now)
    for key, drain in fleet.drains.items():
        fleet.drains[key] = replace(drain, routers=drain.routers | {event.router})


def of_live_router(
    react: Callable[[Fleet, Any, float], None],
) -> Callable[[Fleet, Any, float], None]:
    """What a Router says keeps it alive. One that was dropped has to join again: until it does, its
    table may be older than what was unloaded meanwhile."""

    def reaction(fleet: Fleet, event: Any, now: float) -> None:
        if event.router in fleet.routers:
            fleet.routers[event.router] = replace(fleet.routers[event.router], heard=now)
            react(fleet, event, now)

    return reaction


def router_acked(fleet: Fleet, event: ev.RouterAcked, now: float) -> None:
    fleet.routers[event.router] = replace(fleet.routers[event.router], acked=event.revision)


def router_drained(fleet: Fleet, event: ev.RouterDrained, now: float) -> None:
    drain = fleet.drains.get(event.key)
    if drain is not None and event.revision >= drain.revision:
        fleet.drains[event.key] = replace(drain, routers=drain.routers - {event.router})


def router_started(fleet: Fleet, event: ev.RouterStarted, now: float) -> None:
    key = end_use_lease(fleet, event.use_lease)
    if key is not None and fleet.replica(key) is not None:
        fleet.touch(key, now, 0)


def end_use_lease(fleet: Fleet, lease: str) -> ReplicaKey | None:
    """The replica that it was for, or None where the lease had ended before."""
    key = fleet.lease_keys.pop(lease, None)
    if key is None or lease not in fleet.use_leases.get(key, ()):
        return None
    fleet.use_leases[key].discard(lease)
    if not fleet.use_leases[key]:  # the replica may be evicted again
        del fleet.use_leases[key]
        fleet.changed[key.server] = None
    return key


def router_used(fleet: Fleet, event: ev.RouterUsed, now: float) -> None:
    view = fleet.routers[event.router]
    was = view.in_use
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
    view = replace(view, in_use=in_use)
    fleet.routers[event.router] = view
    for key, drain in list(fleet.drains.items()):
        if event.router in drain.routers and has_drained(view, key, drain.revision):
            fleet.drains[key] = replace(drain, routers=drain.routers - {event.router})


def _count(fleet: Fleet, key: ReplicaKey, before: tuple[int, int], after: tuple[int, int]) -> None:
    """A Router has other requests and sequences in flight on a replica than before."""
    if before == after or fleet.replica(key) is None:
        return
    use = fleet.use(key)
    fleet.uses[key.server][key.unit] = use._replace(
        in_flight=max(0, use.in_flight + after[0] - before[0]),
        sequences=max(0, use.sequences + after[1] - before[1]),
    )
    if before[1] and not after[1]:
        fleet.changed[key.server] = None


def forget_router(fleet: Fleet, router: str) -> None:
    view = fleet.routers.pop(router)
    for key, counts in view.in_use.items():
        _count(fleet, key, counts, (0, 0))
    for key, drain in fleet.drains.items():
        fleet.drains[key] = replace(drain, routers=drain.routers - {router})


def withdraw_all(fleet: Fleet, unit: Unit, why: ev.Why, reason: str, now: float) -> None:
    for replica in list(fleet.everywhere(unit)):
        if replica.state is State.READY:
            withdraw_family(fleet, replica, why, reason, now)
        elif replica.state is State.LOADING:  # it leaves once it is loaded
            fleet.put(replica._replace(broken=True))


def withdraw_family(fleet: Fleet, replica: Replica, why: ev.Why, reason: str, now: float) -> None:
    """A replica, and all that need it on its server."""
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
    """Tell the Routers first; the server is told once they have drained it."""
    fleet.move(replica, Cause.EVICTED, reason, now)
    fleet.use_leases.pop(replica.key, None)
    fleet.publish((replica.unit.model,))
    fleet.drains[replica.key] = Drain(fleet.revision, frozenset(fleet.routers), fleet.unload_from)
    if fleet.unload_from > now:
        fleet.timers.at(fleet.unload_from)
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
    for key, drain in list(fleet.drains.items()):
        if drain.over(now) and not fleet.holders(key.unit, key.server) and not fleet.changing(key):
            replica = fleet.replicas[key.server][key.unit]
            del fleet.drains[key]
            unload(fleet, replica, Cause.DRAINED, "drained", now)


def unload(fleet: Fleet, replica: Replica, cause: Cause, reason: str, now: float) -> None:
    key = replica.key
    fleet.move(replica, cause, reason, now)
    fleet.out.append(ev.Unload(key, replica.attempt, fleet.applied(key)))
    fleet.record(ev.Kind.UNLOADING, reason, server=key.server, unit=key.unit)


def watch_routers(fleet: Fleet, now: float) -> None:
    """Be woken when the Router that was heard from least recently would be lost."""
    if fleet.routers and fleet.silent_at <= now:
        heard = min(view.heard for view in fleet.routers.values())
        fleet.silent_at = heard + fleet.limits.router_seconds
        fleet.timers.at(fleet.silent_at)


def expire(fleet: Fleet, now: float) -> None:
    """Drop the Routers that were not heard from, and the use leases that ran out."""
    for router, view in list(fleet.routers.items()):
        if now >= view.heard + fleet.limits.router_seconds:
            forget_router(fleet, router)
            silence = now - view.heard
            fleet.record(ev.Kind.ROUTER_LOST, f"{router} was not heard from for {silence:.1f} s")
    watch_routers(fleet, now)
    while fleet.lease_ends and fleet.lease_ends[0][0] <= now:
        end_use_lease(fleet, heappop(fleet.lease_ends)[1])
