"""Withdrawing a replica without failing a request: Routers' leases, acks and use."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from services.controller.core import events as ev
from services.controller.core import residents
from services.controller.core.entities import Replica, Unit
from services.controller.core.fleet import Fleet
from services.controller.core.routers import Drain, RouterView, has_drained
from services.controller.core.states import Cause, State


def router_joined(fleet: Fleet, event: ev.RouterJoined, now: float) -> None:
    if event.router not in fleet.routers:
        fleet.record(ev.Kind.ROUTER_JOINED, event.router)
    fleet.routers[event.router] = RouterView(now, in_flight=dict.fromkeys(event.in_use, 1))
    for key in event.in_use & fleet.drains.keys():
        drain = fleet.drains[key]
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
    for key, leases in list(fleet.use_leases.items()):
        if leases.pop(event.use_lease, None) is not None:
            if not leases:
                del fleet.use_leases[key]
            replica = fleet.replica(key)
            if replica is not None:
                fleet.put(replace(replica, last_used=now))


def router_used(fleet: Fleet, event: ev.RouterUsed, now: float) -> None:
    before = fleet.routers[event.router]
    in_flight = {key: count for key, (_, count) in event.usage.items() if count}
    view = replace(before, in_flight=in_flight)
    fleet.routers[event.router] = view
    for key in {*event.usage, *before.in_flight}:
        replica = fleet.replica(key)
        if replica is None:
            continue
        age, _ = event.usage.get(key, (now - replica.last_used, 0))
        fleet.touch(key, now - age)
        fleet.put(
            replace(
                fleet.replicas[key.server][key.unit],
                in_flight=sum(r.in_flight.get(key, 0) for r in fleet.routers.values()),
            )
        )
    for key, drain in list(fleet.drains.items()):
        if event.router in drain.routers and has_drained(view, key, drain.revision):
            fleet.drains[key] = replace(drain, routers=drain.routers - {event.router})


def withdraw_all(fleet: Fleet, unit: Unit, reason: str, now: float) -> None:
    for replica in fleet.ready(unit):
        here = fleet.replicas[replica.key.server]
        family = {unit, *residents.holders(unit, here, fleet.specs)}
        for member in family:
            if here[member].state is State.READY:
                withdraw(fleet, here[member], reason, None, "", now)


def withdraw(
    fleet: Fleet, replica: Replica, reason: str, for_unit: Unit | None, trace_id: str, now: float
) -> None:
    """Tell the Routers first; the server is told once they have drained it."""
    fleet.move(replica, Cause.EVICTED, reason, now)
    fleet.use_leases.pop(replica.key, None)
    fleet.publish((replica.unit.model,))
    fleet.drains[replica.key] = Drain(fleet.revision, frozenset(fleet.routers), fleet.unload_from)
    fleet.record(
        ev.Kind.EVICTING,
        reason,
        server=replica.key.server,
        unit=replica.unit,
        for_unit=for_unit,
        trace_id=trace_id,
    )


def finish_drains(fleet: Fleet, now: float) -> None:
    for key, drain in list(fleet.drains.items()):
        here = fleet.replicas[key.server]
        if (
            drain.over(now)
            and not residents.holders(key.unit, here, fleet.specs)
            and not fleet.changing(key)
        ):
            replica = fleet.move(here[key.unit], Cause.DRAINED, "drained", now)
            del fleet.drains[key]
            fleet.out.append(ev.Unload(key, replica.attempt, fleet.applied(key)))
            fleet.record(ev.Kind.UNLOADING, "drained", server=key.server, unit=key.unit)


def expire(fleet: Fleet, now: float) -> None:
    """Drop the Routers that were not heard from, and the use leases that ran out."""
    for router, view in list(fleet.routers.items()):
        silence = now - view.heard
        if silence > fleet.limits.router_seconds:
            del fleet.routers[router]
            fleet.record(ev.Kind.ROUTER_LOST, f"{router} was not heard from for {silence:.1f} s")
            for key, drain in fleet.drains.items():
                fleet.drains[key] = replace(drain, routers=drain.routers - {router})
    for key, leases in list(fleet.use_leases.items()):
        alive = {lease: held for lease, held in leases.items() if held.expires > now}
        if alive:
            fleet.use_leases[key] = alive
        else:
            del fleet.use_leases[key]
