"""Reactions to loads and unloads, and the start of loads in their turn."""

from typing import Final

from services.controller.core import (
    demand,
    draining,
    memory,
    recall,
    reconcile,
    slots,
    victims,
)
from services.controller.core import events as ev
from services.controller.core.entities import Replica, Server, Unit
from services.controller.core.fleet import Fleet
from services.controller.core.states import COMING, Cause, State
from services.controller.core.waiting import Purpose

ITS_TURN: Final = "waits for its turn on its server"
HUNG: Final = 2  # times as long as its load hung, and a unit is tried again


def loaded(fleet: Fleet, event: ev.Loaded, now: float) -> None:
    replica = fleet.at(event.key, event.attempt, State.LOADING)
    if replica is None:
        return
    unit = replica.unit
    if not replica.broken and recall.forget(fleet, unit):
        fleet.publish(user.model for user in fleet.known.with_users(unit))
    fleet.learn_load(replica, event.seconds)
    want = fleet.wants.by_unit.get(unit)
    if want is not None and want.purpose is Purpose.PREDICTED:
        fleet.habits.loaded_ahead(replica.key, now)
    reason = f"loaded in {event.seconds:.2f} s"
    fleet.uses.start(replica, now)
    ready = fleet.move(
        replica, Cause.LOADED, reason, now, load_seconds=event.seconds, overdue=False
    )
    fleet.record(
        ev.Kind.READY,
        reason,
        server=replica.key.server,
        unit=unit,
        trace_id=fleet.wants.trace_of(unit),
    )
    fleet.publish((unit.model,))
    fleet.look_at_host(replica.key.server)
    if unit in fleet.known.specs:
        reserved = reconcile.reserved_now(fleet, ready)
        if reserved != ready.reserved:
            ready = fleet.amend(ready, reserved=reserved)
        if ready.broken or parts_gone(fleet, ready):
            outdated = "it is outdated, or a part of it is gone"
            draining.withdraw_family(fleet, ready, ev.Why.CATALOGUE, outdated, now)
    else:
        left = "it left the catalogue while loading"
        draining.withdraw_all(fleet, unit, ev.Why.CATALOGUE, left, now)


def parts_gone(fleet: Fleet, replica: Replica) -> bool:
    """Return whether something that it requires has left its server, or is about to."""
    here = fleet.replicas[replica.key.server]
    return any(
        part not in here or here[part].state not in COMING
        for part in fleet.known.specs[replica.unit].requires
    )


def load_failed(fleet: Fleet, event: ev.LoadFailedOnServer, now: float) -> None:
    replica = fleet.at(event.key, event.attempt, State.LOADING)
    if replica is None:
        return
    fleet.remove(replica, Cause.LOAD_FAILED, now)
    if event.undone:  # whoever waits for it still wants it
        server, unit = event.key
        undone = "unloaded by somebody else while it was being loaded"
        fleet.record(ev.Kind.UNEXPECTED, undone, server=server, unit=unit)
    elif not replica.broken:  # else its files have changed since
        failed(fleet, replica, event.cause, now)


def load_hung(fleet: Fleet, event: ev.LoadHung, now: float) -> None:
    """Unload what is not loaded in time. The load may still come to an end, so the replica keeps
    what is reserved for it until it is unloaded."""
    replica = fleet.at(event.key, event.attempt, State.LOADING)
    if replica is not None:
        failed(fleet, replica, event.cause, now, took=now - replica.since)
        draining.unload(fleet, replica, Cause.LOAD_HUNG, event.cause, now)
        fleet.look_at_host(replica.key.server)


def failed(fleet: Fleet, replica: Replica, cause: str, now: float, took: float = 0.0) -> None:
    """Keep the unit from being tried for a while, and tell those that wait for it why.

    `took`: seconds of a load that hung, which may cost its server a restart. Such a unit is left
    alone for longer than that, or it would take one server after another.
    """
    unit, server = replica.unit, replica.key.server
    limits = fleet.limits
    backoff = (
        max(limits.backoff_seconds, HUNG * took),
        max(limits.max_backoff_seconds, 10 * HUNG * took),
    )
    failure = fleet.failures.add(unit, server, cause, backoff, now)
    recall.failed(fleet, unit, failure, now)
    fleet.record(
        ev.Kind.LOAD_FAILED,
        cause,
        server=server,
        unit=unit,
        trace_id=fleet.wants.trace_of(unit),
    )
    fleet.publish(user.model for user in fleet.known.with_users(unit))
    for user in fleet.known.with_users(unit):
        want = fleet.wants.by_unit.get(user)
        if want is None or want.server not in (None, server):
            continue
        if not fleet.ready(user):
            demand.refuse_all(fleet, user, demand.why_failed(unit, failure, now), now)
        else:  # another copy: not worth another try
            fleet.wants.drop(user)
            demand.forsake(fleet, want, now)


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


def unload_hung(fleet: Fleet, event: ev.UnloadHung, now: float) -> None:
    """Have the server restarted: nothing else gives the memory back, which stays reserved."""
    replica = fleet.at(event.key, event.attempt, State.UNLOADING)
    if replica is not None:
        fleet.amend(replica, reason=event.cause, broken=True)
        reason = f"{replica.unit} does not unload: {event.cause}"
        reconcile.drain_server(fleet, replica.key.server, reason, restart=True, now=now)


def start_loads(fleet: Fleet, server: Server, now: float) -> None:
    if not fleet.accounts[server.id].waiting or not server.accepting:
        return
    here, account = fleet.replicas[server.id], fleet.accounts[server.id]
    queued = [here[unit] for unit in account.coming if here[unit].state is State.QUEUED]
    full = account.loads >= fleet.limits.loads_per_server
    if len(queued) > 1 and not full:
        queued.sort(key=lambda replica: turn(fleet, replica))
    for replica in queued:
        reason = ITS_TURN if full else obstacle(fleet, replica, server)
        if reason is None:
            start(fleet, replica, now)
        elif reason != replica.reason:
            fleet.explain(replica, reason)


def turn(fleet: Fleet, replica: Replica) -> tuple[float, Unit]:
    """The turn of the most urgent want that needs the replica."""
    turns = map(fleet.wants.order, fleet.wants.placed_at(replica.key))
    return min(turns, default=(replica.since, replica.unit))


def obstacle(fleet: Fleet, replica: Replica, server: Server) -> str | None:
    """Return what the load waits for, or None when it may start."""
    here, account = fleet.replicas[server.id], fleet.accounts[server.id]
    spec = fleet.known.specs[replica.unit]
    for part in spec.requires:
        if part not in here or here[part].state is not State.READY:
            return f"waits for its part {part}"
    if fleet.changing(replica.key):
        return "waits for another change to the same model"
    other = victims.clashing_with(fleet, server.id, spec)
    if other is not None:
        return f"waits until {other}, which cannot be beside it, is gone"
    if account.loads >= fleet.limits.loads_per_server:
        return ITS_TURN
    host = sum(fleet.accounts[neighbour].loads for neighbour in fleet.neighbours(server.id))
    if host >= fleet.limits.loads_per_host:
        return "waits for its turn on its host"
    if account.loads:
        loading = [
            unit
            for unit in account.coming
            if here[unit].state is State.LOADING and not here[unit].overdue
        ]
        unknown = [u for u in (*loading, replica.unit) if not fleet.known.size_known(u)]
        if unknown:
            return f"the size of {unknown[0]} is unknown, so it loads alone"
    if not account.fits(replica.reserved, replica.slots, server):
        return "waits until there is room"
    return None


def start(fleet: Fleet, replica: Replica, now: float) -> None:
    attempt = fleet.next_attempt()
    server, unit = replica.key
    slots.expect(fleet, fleet.move(replica, Cause.STARTED, "loading", now, attempt=attempt))
    versions = tuple(sorted({*fleet.applied(replica.key), unit.version}))
    fleet.tell(ev.Load(replica.key, attempt, versions))
    fleet.record(
        ev.Kind.LOADING,
        f"reserved {memory.text(replica.reserved)}",
        server=server,
        unit=unit,
        trace_id=fleet.wants.trace_of(unit),
    )
    for want in fleet.wants.placed_at(replica.key):
        if want.load_began is None:
            fleet.wants.put(want._replace(load_began=now, status=f"loading on {server}"))
