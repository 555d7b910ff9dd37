"""Reactions to the passing of time: what is done at every tick, and what it feeds on."""

from dataclasses import replace
from typing import Final

from services.controller.core import (
    accounts,
    blame,
    copies,
    demand,
    draining,
    placing,
    recall,
    victims,
)
from services.controller.core import events as ev
from services.controller.core.copies import Pressure
from services.controller.core.entities import Health, Replica, ReplicaKey, Server, Unit
from services.controller.core.fleet import Fleet
from services.controller.core.placement import Place, place
from services.controller.core.slots import none_free
from services.controller.core.states import COMING, State
from services.controller.core.victims import Later, Terms
from services.controller.core.waiting import Purpose

AT_A_TICK: Final = 64  # servers that are looked after
TOLD_AT_A_TICK: Final = 64  # units whose uses are told
STRANGER_SECONDS: Final = 30.0  # a model that is not in the catalogue may be about to be
CALM_SECONDS: Final = 1.0  # no headroom is made so soon after a load
BUSY_SECONDS: Final = 10.0  # a replica used within them is moved before it leaves


def tick(fleet: Fleet, event: ev.Tick, now: float) -> None:
    demand.want_kept(fleet, now)
    want_preloads(fleet, now)
    fleet.wants.review()
    blame_lonely(fleet, now)
    forgive(fleet, now)
    follow_demand(fleet, now)
    send_strangers_away(fleet, now)
    let_parts_go(fleet, now)
    for server in fleet.some_servers(AT_A_TICK):
        clear_out(fleet, server, now)
        if server.health is not Health.HEALTHY:
            continue
        if server.draining:
            empty(fleet, server, now)
        else:
            make_headroom(fleet, server, now)
    predict(fleet, event.wall, now)
    tell_uses(fleet, now)
    placing.retry(fleet, now)
    fleet.forget_departed(now, fleet.limits.router_seconds)


# --- what is wanted though nobody waits -----------------------------------------------------------


def want_preloads(fleet: Fleet, now: float) -> None:
    if fleet.known.preload and any(server.accepting for server in fleet.servers.values()):
        for unit in fleet.known.take_preload():
            if not fleet.ready(unit) and demand.hopeless(fleet, unit, now) is None:
                fleet.wants.want(unit, Purpose.PRELOAD, now)


def forgive(fleet: Fleet, now: float) -> None:
    """Publish the units that failed to load and may be tried again: they can be served again."""
    for unit in fleet.failures.forgive(now, fleet.limits.max_backoff_seconds):
        if fleet.ready(unit):  # another copy of it failed
            recall.forget(fleet, unit)
        fleet.publish((unit.model,))


# --- crashes --------------------------------------------------------------------------------------


def router_broke(fleet: Fleet, event: ev.RouterBroke, now: float) -> None:
    newest = blame.Break(now, event.key, event.earlier, event.repeated)
    fleet.failures.broke(newest)
    why = blame.culprit(newest)
    if why is not None:
        set_aside(fleet, event.key.unit, event.key.server, why, now)


def blame_lonely(fleet: Fleet, now: float) -> None:
    for unit, why in fleet.failures.lonely(now, fleet.limits.suspect_seconds).items():
        set_aside(fleet, unit, "", why, now)


def set_aside(fleet: Fleet, unit: Unit, server: str, why: str, now: float) -> None:
    """Keep a unit from being loaded for a while: one poisonous request must not walk through the
    fleet."""
    if unit not in fleet.known.specs:
        return
    seconds = fleet.limits.set_aside_seconds
    for_long = (seconds, 10 * seconds)
    failure = fleet.failures.add(unit, server, why, for_long, now, set_aside=True)
    recall.failed(fleet, unit, failure, now)
    fleet.record(ev.Kind.SET_ASIDE, why, server=server, unit=unit)
    draining.withdraw_all(fleet, unit, ev.Why.SET_ASIDE, f"set aside: {why}", now)
    for user in fleet.known.with_users(unit):
        demand.refuse_all(fleet, user, demand.why_failed(unit, failure, now), now)
    fleet.publish((unit.model,))


# --- copies ---------------------------------------------------------------------------------------


def queues_seen(fleet: Fleet, event: ev.QueuesSeen, now: float) -> None:
    for unit in fleet.replicas.get(event.server, ()):
        fleet.pressures.queue_seen(ReplicaKey(event.server, unit), event.seconds.get(unit, 0.0))


def follow_demand(fleet: Fleet, now: float) -> None:
    pressures = fleet.pressures
    busy = {key.unit for view in fleet.withdrawals.routers.values() for key in view.in_use}
    for unit in busy | pressures.by_unit.keys():
        ready = fleet.ready(unit)
        spec = fleet.known.specs.get(unit)
        if not ready or spec is None:
            pressures.forget_unit(unit)
            continue
        in_flight = sum(fleet.use(replica.key).in_flight for replica in ready)
        queue = max(pressures.queues.get(replica.key, 0.0) for replica in ready)
        before = pressures.by_unit.get(unit) or Pressure(now)
        pressure = copies.step(
            before, in_flight, queue, len(ready), fleet.limits, now, spec.batching
        )
        most = fleet.limits.most_copies(spec)
        wanted = copies.adjustment(
            pressure, len(ready), spec.kept, most, fleet.limits, now, spec.batching
        )
        if wanted is not None:
            pressure = copies.again(pressure)
            if wanted.by < 0:
                drop_copy(fleet, ready, wanted.reason, now)
            elif demand.hopeless(fleet, unit, now) is None:
                target = len(ready) + 1
                fleet.wants.want(unit, Purpose.COPY, now, target=target, why=wanted.reason)
        if len(ready) > 1 or in_flight or pressure.in_flight > 0.01:
            pressures.put(unit, pressure)
        else:
            pressures.forget_unit(unit)


def drop_copy(fleet: Fleet, ready: list[Replica], reason: str, now: float) -> None:
    """Withdraw the least busy of several copies, if one may go."""
    for replica in sorted(ready, key=lambda r: (fleet.use(r.key).in_flight, fleet.use(r.key).rank)):
        key = replica.key
        free = key not in fleet.withdrawals.use_leases and not fleet.use(key).sequences
        if free and not fleet.holders(key.unit, key.server):
            draining.withdraw(fleet, replica, ev.Why.COPIES, reason, now)
            return


# --- rooms to clear -------------------------------------------------------------------------------


def let_parts_go(fleet: Fleet, now: float) -> None:
    """Withdraw what appeared on a server, or in the catalogue, while a part of it was leaving."""
    for part in list(fleet.withdrawals.drains):
        for user in sorted(fleet.holders(part.unit, part.server)):
            replica = fleet.replicas[part.server][user]
            if replica.state is State.READY:
                leaving = f"{part.unit} is leaving"
                draining.withdraw_family(fleet, replica, ev.Why.PART, leaving, now)


def send_strangers_away(fleet: Fleet, now: float) -> None:
    """Withdraw what has been resident for a while and is not in the catalogue."""
    for key in list(fleet.strangers):
        replica = fleet.replica(key)
        if replica is None or key.unit in fleet.known.specs:
            fleet.forget_stranger(key)
        elif replica.state is State.READY and now - replica.since > STRANGER_SECONDS:
            unknown = "it is not in the catalogue"
            draining.withdraw(fleet, replica, ev.Why.CATALOGUE, unknown, now)


def clear_out(fleet: Fleet, server: Server, now: float) -> None:
    """Withdraw what has not been used for longer than its idle TTL."""
    here = fleet.replicas[server.id]
    for unit in list(here) if fleet.limits.idle_ttl_seconds else fleet.known.own_ttl & here.keys():
        replica, spec = here[unit], fleet.known.specs.get(unit)
        if replica.state is not State.READY or spec is None:
            continue
        ttl = fleet.limits.idle_ttl(spec)
        use = fleet.use(replica.key)
        idle = now - use.last_used
        if ttl and idle > ttl and not use.in_flight and victims.may_leave(fleet, replica):
            if fleet.holders(unit, server.id):
                continue  # it leaves with what needs it
            reason = f"not used for {idle:.0f} s (its idle TTL is {ttl:.0f} s)"
            draining.withdraw(fleet, replica, ev.Why.IDLE, reason, now)


def make_headroom(fleet: Fleet, server: Server, now: float) -> None:
    """Evict what is idle until the server is below its soft limit, ahead of need."""
    account = fleet.accounts[server.id]
    slots = server.max_models - server.headroom_models if server.headroom_models else 0
    if not (server.soft or slots):
        return
    if account.busy or now - account.ready_at < CALM_SECONDS:
        return  # an unload would take its share of what the newcomer's first requests need
    if none_free(fleet, server.id) is not None:
        return  # no load could begin in the room that is made
    terms = Terms(idle_since=now - fleet.limits.headroom_idle_seconds)
    while over := account.excess(server, server.soft, slots):
        family = victims.first_to_free(fleet, server.id, over, terms)
        if family is None:
            return
        reason = f"headroom: {server.id} is over its soft limit by {accounts.excess_text(over)}"
        for unit in victims.ensembles_first(fleet, server.id, set(family)):
            replica = fleet.replicas[server.id][unit]
            draining.withdraw(fleet, replica, ev.Why.HEADROOM, reason, now)


def empty(fleet: Fleet, server: Server, now: float) -> None:
    """Have a drained server's replicas leave, the busy ones once they are READY elsewhere."""
    here = list(fleet.replicas[server.id].values())
    for replica in here:
        if replica.state is State.READY and not moved_first(fleet, replica, now):
            reason = f"drained: {server.draining}"
            draining.withdraw_family(fleet, replica, ev.Why.DRAIN, reason, now)
    stuck = all(r.state is State.UNLOADING and r.broken for r in here)
    if server.restart and not server.restart_wanted and stuck:
        fleet.put_server(replace(server, restart_wanted=True))
        reason = f"empty, and to be restarted: {server.draining}"
        fleet.record(ev.Kind.SERVER_DRAINING, reason, server=server.id)
        fleet.publish((), {server.id})


def moved_first(fleet: Fleet, replica: Replica, now: float) -> bool:
    """Return whether a replica has to stay until its unit is READY elsewhere, which is then
    arranged."""
    unit = replica.unit
    use = fleet.use(replica.key)
    in_use = use.in_flight or use.sequences or now - use.last_used < BUSY_SECONDS
    elsewhere = [r for r in fleet.ready(unit) if fleet.servers[r.key.server].accepting]
    if replica.broken or elsewhere or not (in_use or unit in fleet.known.kept):
        return False
    coming = [r for r in fleet.everywhere(unit) if r.state in COMING]
    if any(fleet.servers[r.key.server].accepting for r in coming):
        return True
    spec = fleet.known.specs.get(unit)
    if spec is None or demand.hopeless(fleet, unit, now) is not None:
        return False
    if not isinstance(place(fleet, spec, Terms(), now), Place | Later):
        return False
    target = len(fleet.ready(unit)) + 1
    fleet.wants.want(
        unit,
        Purpose.KEPT,
        now,
        target=target,
        until=now + 60.0,
        why="to be moved off a drained server",
    )
    return True


# --- what is to be remembered ---------------------------------------------------------------------


def tell_uses(fleet: Fleet, now: float) -> None:
    """Have some of the uses that have changed kept beyond this Controller's life."""
    for unit in fleet.uses.take_untold(now, TOLD_AT_A_TICK):
        spec = fleet.known.specs.get(unit)
        uses = fleet.uses.total(unit, fleet.where.get(unit, ()))
        if spec is not None and uses.uses:
            idle = now - uses.at
            fleet.tell(ev.Used(unit, spec.config_digest, spec.fingerprint, uses.uses, idle))


# --- prediction -----------------------------------------------------------------------------------


def predict(fleet: Fleet, wall: float, now: float) -> None:
    """Load what is expected to be used soon, where there is room to spare."""
    for forecast in fleet.habits.forecast(wall, now):
        unit = forecast.unit
        wanted = unit in fleet.where or unit in fleet.wants.by_unit
        if wanted or demand.hopeless(fleet, unit, now):
            continue
        why = f"expected ({forecast.probability:.0%}): {forecast.reason}"
        fleet.wants.want(unit, Purpose.PREDICTED, now, why=why, until=now + 30.0)
