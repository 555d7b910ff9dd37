"""Reactions that keep the picture true: to the catalogue, to the servers' indexes, and to what is
measured on the servers."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from services.common.errors import VersionNotFound
from services.controller.core import (
    accounts,
    demand,
    draining,
    memory,
    placing,
    recall,
    slots,
    victims,
)
from services.controller.core import events as ev
from services.controller.core.entities import Health, Replica, ReplicaKey, Server, Unit, UnitSpec
from services.controller.core.fleet import Fleet
from services.controller.core.sizing import expected, reservation, reservation_of_resident
from services.controller.core.states import APPLIED, OCCUPYING, Cause, State, after
from services.controller.core.victims import Terms

SETTLED_SECONDS: Final = 10.0  # a replica that has been READY for so long has shown its size


# --- the catalogue --------------------------------------------------------------------------------


def catalogue_changed(fleet: Fleet, event: ev.CatalogueChanged, now: float) -> None:
    fresh = {spec.unit: spec for spec in event.specs}
    for unit in fleet.known.replace_versions(event.models, fresh):
        forget_unit(fleet, unit, now)
    for spec in fresh.values():
        put_spec(fleet, spec, now)
    fleet.curves.forget_all()  # what may leave has changed
    demand.want_kept(fleet, now)
    fleet.publish(event.models)


def uses_recalled(fleet: Fleet, event: ev.UsesRecalled, now: float) -> None:
    for unit, (uses, idle) in event.uses.items():
        if unit in fleet.known.specs:
            fleet.uses.recall(unit, uses, now - idle)


def forget_unit(fleet: Fleet, unit: Unit, now: float) -> None:
    gone = VersionNotFound(
        model=unit.model,
        version=unit.version,
        versions="none (it was removed while this request waited)",
    )
    for user in fleet.known.with_users(unit):
        demand.refuse_all(fleet, user, gone, now)
    fleet.known.remove(unit)
    fleet.failures.clear(unit)
    fleet.habits.forget_unit(unit)
    fleet.uses.forget_unit(unit)
    for replica in list(fleet.everywhere(unit)):
        if replica.state is State.QUEUED:
            fleet.remove(replica, Cause.ABANDONED, now)
    draining.withdraw_all(fleet, unit, ev.Why.CATALOGUE, "it is no longer in the catalogue", now)


def put_spec(fleet: Fleet, spec: UnitSpec, now: float) -> None:
    """Take in what the Registry says of a unit, and what follows for its replicas."""
    unit = spec.unit
    known = fleet.known.specs.get(unit)
    if known is not None:
        spec = replace(spec, expected=expected(known, spec))
    before = fleet.known.group(known)[:-1] if known is not None else ()
    fleet.known.put(spec)
    if known is None or spec.requires != known.requires:  # what is made of it needs other parts
        for user in fleet.known.with_users(unit):
            if user in fleet.wants.by_unit:
                fleet.agenda.look_at_want(user)
        for member in before:
            demand.give_up_unneeded(fleet, fleet.everywhere(member.unit), now)
    if known is None:
        for stranger in list(fleet.everywhere(unit)):
            budget = fleet.servers[stranger.key.server].budget
            reserved = reservation(spec, budget, fleet.limits)
            fleet.amend(stranger, reserved=reserved, slots=spec.slots)
        return
    reserve_again(fleet, spec)
    if (known.requires, known.unversioned) != (spec.requires, spec.unversioned):
        for replica in fleet.ready(unit):
            if lack := lacking(fleet, replica):
                draining.withdraw_family(fleet, replica, ev.Why.PART, lack, now)
    if (known.config_digest, known.fingerprint) != (spec.config_digest, spec.fingerprint):
        fleet.failures.clear(unit)
        draining.withdraw_all(
            fleet, unit, ev.Why.CATALOGUE, "its files or config have changed", now
        )
    if known.pinned != spec.pinned:
        kind = ev.Kind.PINNED if spec.pinned else ev.Kind.UNPINNED
        fleet.record(kind, "set in the Registry", unit=unit)


def lacking(fleet: Fleet, replica: Replica) -> str:
    """Return what a replica needs on its server that is not so, for people; empty if nothing."""
    here = fleet.replicas[replica.key.server]
    spec = fleet.known.specs[replica.unit]
    for part in spec.requires:
        if part not in here or here[part].state is not State.READY:
            return f"it needs {part} beside it"
    for part in spec.unversioned:
        for other in fleet.of_model_on(part.model, replica.key.server):
            if other.unit.version > part.version:
                return f"it calls {part} without a version, and {other.unit} is beside it"
    return ""


def reserve_again(fleet: Fleet, spec: UnitSpec) -> None:
    """Reserve what a unit takes by its new spec wherever its load has not begun."""
    for replica in list(fleet.everywhere(spec.unit)):
        if replica.state is State.QUEUED:
            budget = fleet.servers[replica.key.server].budget
            reserved = reservation(spec, budget, fleet.limits)
            loaded = {"digest": spec.digest, "fingerprint": spec.fingerprint}
            fleet.amend(replica, reserved=reserved, slots=spec.slots, **loaded)


# --- servers --------------------------------------------------------------------------------------


def server_found(fleet: Fleet, event: ev.ServerFound, now: float) -> None:
    server = event.server
    known = fleet.servers[server.id]
    forget_replicas(fleet, server.id, "the server is being inventoried again", now)
    kept_out = known.draining if not known.restart else ""  # a restart is over with the restart
    fleet.put_server(replace(server, health=Health.HEALTHY, reason="", draining=kept_out))
    fleet.record(ev.Kind.SERVER_HEALTHY, f"{len(event.resident)} models resident", server=server.id)
    found = "found when the server was inventoried"
    for unit in sorted(event.resident):
        key = ReplicaKey(server.id, unit)
        adopt(fleet, key, Cause.ADOPTED, found, now, event.idle.get(unit, 0.0))
        if unit not in event.outdated and recall.forget(fleet, unit):
            fleet.publish(user.model for user in fleet.known.with_users(unit))
    for unit in sorted(event.outdated & event.resident):
        resident = fleet.replicas[server.id][unit]
        if resident.state is State.READY:
            outdated = "it was loaded with a config that has changed since"
            draining.withdraw_family(fleet, resident, ev.Why.CATALOGUE, outdated, now)
    for unit in sorted(event.loading):
        adopt(fleet, ReplicaKey(server.id, unit), Cause.FOUND_LOADING, found, now)
        if unit in event.outdated:  # it leaves once it is loaded
            fleet.amend(fleet.replicas[server.id][unit], broken=True)
    for unit in sorted(event.unloading):
        adopt(fleet, ReplicaKey(server.id, unit), Cause.FOUND_UNLOADING, found, now)
    demand.want_kept(fleet, now)
    fleet.publish((), {server.id})


def adopt(
    fleet: Fleet, key: ReplicaKey, cause: Cause, reason: str, now: float, idle: float = 0.0
) -> None:
    """Take in a replica that the server has already. One that is not in the catalogue takes room
    all the same; nobody is told of it, and it leaves (`upkeep`)."""
    spec = fleet.known.specs.get(key.unit)
    state = after(State.ABSENT, cause)
    budget = fleet.servers[key.server].budget
    reserved = reservation(spec, budget, fleet.limits) if spec is not None else {}
    attempt = fleet.next_attempt()
    replica = Replica(
        key,
        state,
        reserved,
        now,
        reason,
        reason,
        attempt,
        slots=spec.slots if spec is not None else 1,
        digest=spec.digest if spec is not None else "",
        fingerprint=spec.fingerprint if spec is not None else "",
    )
    fleet.uses.start(replica, now - idle, loads=False)
    fleet.put(replica)
    if state is State.LOADING:
        slots.expect(fleet, replica)
    if state is not State.READY:
        fleet.tell(ev.Settle(key, attempt, loading=state is State.LOADING))
        kind = ev.Kind.LOADING if state is State.LOADING else ev.Kind.UNLOADING
        fleet.record(kind, reason, server=key.server, unit=key.unit)
    elif spec is None:
        fleet.note_stranger(key)
        unknown = "resident but not in the catalogue"
        fleet.record(ev.Kind.UNEXPECTED, unknown, server=key.server, unit=key.unit)
    else:
        fleet.record(ev.Kind.READY, reason, server=key.server, unit=key.unit)
        fleet.publish((key.unit.model,))


def server_lost(fleet: Fleet, event: ev.ServerLost, now: float) -> None:
    server = fleet.servers.get(event.server)
    if server is None:
        return
    health = Health.UNREACHABLE if event.usable else Health.UNUSABLE
    fleet.put_server(replace(server, health=health, reason=event.reason, restart_wanted=False))
    kind = ev.Kind.SERVER_LOST if event.usable else ev.Kind.SERVER_UNUSABLE
    fleet.record(kind, event.reason, server=server.id)
    forget_replicas(fleet, server.id, event.reason, now)
    fleet.wants.unclaim(server.id)
    fleet.publish((), {server.id})


def forget_replicas(fleet: Fleet, server: str, reason: str, now: float) -> None:
    for replica in list(fleet.replicas[server].values()):
        fleet.remove(replica, Cause.LOST, now)
    for want in fleet.wants.on_server(server):
        fleet.wants.unplace(want, reason)


def drain_wanted(fleet: Fleet, event: ev.DrainWanted, now: float) -> None:
    server = fleet.servers.get(event.server)
    if server is None:
        return
    if event.reason:
        drain_server(fleet, server.id, event.reason, restart=event.restart, now=now)
    elif server.draining:
        fleet.put_server(replace(server, draining="", restart=False, restart_wanted=False))
        fleet.record(ev.Kind.SERVER_HEALTHY, "no longer drained", server=server.id)
        fleet.publish((), {server.id})


def drain_server(fleet: Fleet, server: str, reason: str, *, restart: bool, now: float) -> None:
    """Place nothing new on a server; `upkeep` has its replicas leave."""
    known = fleet.servers[server]
    if known.draining and known.restart >= restart:
        return
    fleet.put_server(replace(known, draining=reason, restart=restart))
    fleet.record(ev.Kind.SERVER_DRAINING, reason, server=server)
    fleet.wants.unclaim(server)
    for replica in list(fleet.replicas[server].values()):
        if replica.state is State.QUEUED:
            fleet.remove(replica, Cause.ABANDONED, now)
    for want in fleet.wants.on_server(server):
        if want.load_began is None:
            fleet.wants.unplace(want, f"{server} is drained: {reason}")
    fleet.publish((), {server})


def index_seen(fleet: Fleet, event: ev.IndexSeen, now: float) -> None:
    """Compare the index with the picture, leaving out what changed since it was read."""
    server = fleet.servers.get(event.server)
    if server is None or server.health is not Health.HEALTHY:
        return
    here = fleet.replicas[server.id]
    for unit, replica in list(here.items()):
        if replica.state in APPLIED and unit not in event.resident and replica.since < event.began:
            fleet.record(
                ev.Kind.UNEXPECTED,
                "gone from the server's index, and nobody asked for that",
                server=server.id,
                unit=unit,
            )
            fleet.remove(replica, Cause.VANISHED, now)
    for unit in sorted(event.resident - here.keys()):
        key = ReplicaKey(server.id, unit)
        if fleet.departed.get(key, event.began - 1) < event.began:
            if unit in fleet.known.specs:
                unasked = "in the server's index, and nobody asked for it"
                fleet.record(ev.Kind.UNEXPECTED, unasked, server=server.id, unit=unit)
            adopt(fleet, key, Cause.ADOPTED, "found in the server's index", now)


def replica_broken(fleet: Fleet, event: ev.ReplicaBroken, now: float) -> None:
    """Withdraw a replica that is READY by the index, and useless. It may come back after that."""
    replica = fleet.replica(event.key)
    if replica is None or replica.broken or replica.state not in APPLIED:
        return
    broken = fleet.amend(replica, broken=True)
    fleet.record(ev.Kind.BROKEN, event.cause, server=event.key.server, unit=event.key.unit)
    if replica.state is State.READY:
        reason = f"broken: {event.cause}"
        draining.withdraw_family(fleet, broken, ev.Why.BROKEN, reason, now)


# --- memory ---------------------------------------------------------------------------------------


def measured(fleet: Fleet, event: ev.Measured, now: float) -> None:
    server = fleet.servers.get(event.server)
    if server is None:
        return
    here = fleet.replicas[server.id]
    for unit, amount in event.units.items():
        replica = here.get(unit)
        if replica is None or replica.state not in OCCUPYING or unit not in fleet.known.specs:
            continue
        highest = memory.highest(replica.measured, amount)
        reserved = reserved_now(fleet, replica._replace(measured=highest))
        if (highest, reserved) != (replica.measured, replica.reserved):
            replica = fleet.amend(replica, measured=highest, reserved=reserved)
        settled = replica.state is State.READY and now - replica.since >= SETTLED_SECONDS
        if settled or fleet.known.specs[unit].learned:
            fleet.learn(replica)
    leaked = leak(server, event, here.values())
    server = fleet.measure_server(server, event.total, leaked)
    account = fleet.accounts[server.id]
    if account.overdue:
        reserve_for_overdue(fleet, server, event)
    loads = account.loads or account.overdue
    if server.accepting and not loads and not account.leaving_slots:
        beyond = memory.text({n: size for n, size in leaked.items() if too_much(fleet, server, n)})
        if beyond != "nothing":
            reason = f"{beyond} not given back by models that are gone"
            drain_server(fleet, server.id, reason, restart=True, now=now)


def reserve_for_overdue(fleet: Fleet, server: Server, event: ev.Measured) -> None:
    """Reserve for a load of unknown size that is overdue whatever the server takes beyond its
    models. Others may load beside it, so a guess that it has outgrown must not hold room for
    them."""
    for unit, replica in fleet.replicas[server.id].items():
        if replica.overdue and unit not in event.units and not fleet.known.size_known(unit):
            reserved = memory.plus(replica.reserved, server.leaked)
            if reserved != replica.reserved:
                fleet.amend(replica, reserved=reserved)
            return


def leak(server: Server, event: ev.Measured, here: Iterable[Replica]) -> memory.Memory:
    """Bytes that the server takes beyond its models: those that were measured apart count as
    measured, the others as reserved."""
    explained = memory.total(
        event.units.get(replica.unit, replica.reserved)
        for replica in here
        if replica.state in OCCUPYING
    )
    gone = memory.total(
        size for unit, size in event.units.items() if unit not in {r.unit for r in here}
    )
    known = memory.plus(explained, gone)
    over = {name: event.total.get(name, 0) - known.get(name, 0) for name in server.budget}
    return {name: size for name, size in over.items() if size > 0}


def too_much(fleet: Fleet, server: Server, resource: str) -> bool:
    limits = fleet.limits
    bound = max(limits.leak_bytes, limits.leak_share * server.budget[resource])
    return server.leaked.get(resource, 0) > bound


def reserved_now(fleet: Fleet, replica: Replica) -> memory.Memory:
    """Bytes that an occupying replica counts for, now that it has been measured or is READY."""
    spec = fleet.known.specs[replica.unit]
    known = reservation_of_resident(replica, spec, fleet.limits)
    if replica.state is State.READY:
        return known
    return memory.highest(known, replica.reserved)  # it may still grow towards what was reserved


def repay(fleet: Fleet, server: Server, now: float) -> None:
    """Evict until what stays fits: something grew beyond what was reserved for it, or appeared on
    the server. Where nothing may leave, what waits there to be loaded looks for another place, the
    last in turn first."""
    account = fleet.accounts[server.id]
    while over := account.excess(server, server.budget, server.max_models):
        reason = f"{server.id} is over its limit by {accounts.excess_text(over)}"
        family = victims.first_to_free(fleet, server.id, over, Terms())
        if family is None:
            if not placing.displace_last(fleet, server.id, reason, now):
                return
            continue
        chosen = victims.ensembles_first(fleet, server.id, set(family))
        weighed = victims.weighed(fleet, server.id, chosen, now)
        for unit in chosen:
            replica = fleet.replicas[server.id][unit]
            draining.withdraw(fleet, replica, ev.Why.OVER_LIMIT, reason, now, weighed=weighed)
