"""The picture kept true: the catalogue, the servers' indexes, and what was measured on them."""

from dataclasses import replace
from typing import Final

from services.common.errors import VersionNotFound
from services.controller.core import demand, draining, memory, residents, victims
from services.controller.core import events as ev
from services.controller.core.entities import (
    Health,
    Replica,
    ReplicaKey,
    Server,
    Unit,
    reservation,
    reservation_of_resident,
)
from services.controller.core.fleet import Fleet
from services.controller.core.states import APPLIED, OCCUPYING, Cause, State, after

SETTLED_SECONDS: Final = 10.0  # a residence that lasted so long tells a size worth keeping


def catalog_changed(fleet: Fleet, event: ev.CatalogChanged, now: float) -> None:
    fresh = {spec.unit: spec for spec in event.specs}
    for unit in [u for u in fleet.specs if u.model in event.models and u not in fresh]:
        del fleet.specs[unit]
        fleet.pinned.discard(unit)
        fleet.failures.pop(unit, None)
        demand.refuse_all(
            fleet,
            unit,
            VersionNotFound(
                model=unit.model, version=unit.version, versions="it was removed meanwhile"
            ),
            now,
        )
        draining.withdraw_all(fleet, unit, "it is no longer in the catalogue", now)
    for unit, spec in fresh.items():
        known = fleet.specs.get(unit)
        fleet.specs[unit] = spec
        (fleet.pinned.add if spec.pinned else fleet.pinned.discard)(unit)
        if known is None:
            continue
        same = (known.config_digest, known.fingerprint) == (spec.config_digest, spec.fingerprint)
        if not same:
            fleet.failures.pop(unit, None)
            draining.withdraw_all(fleet, unit, "its files or config have changed", now)
        if known.pinned != spec.pinned:
            kind = ev.Kind.PINNED if spec.pinned else ev.Kind.UNPINNED
            fleet.record(kind, "set in the registry", unit=unit)
    fleet.publish(event.models)


def server_found(fleet: Fleet, event: ev.ServerFound, now: float) -> None:
    server = event.server
    forget_replicas(fleet, server.id, "the server is inventoried anew", now)
    fleet.servers[server.id] = replace(server, health=Health.HEALTHY, reason="")
    fleet.replicas[server.id] = {}
    fleet.record(ev.Kind.SERVER_HEALTHY, f"{len(event.resident)} models resident", server=server.id)
    for unit in sorted(event.resident):
        adopt(fleet, server.id, unit, "found when the server was inventoried", now)
    fleet.publish((), {server.id})


def adopt(fleet: Fleet, server: str, unit: Unit, reason: str, now: float) -> None:
    if unit not in fleet.specs:
        fleet.record(
            ev.Kind.UNEXPECTED, "resident but not in the catalogue", server=server, unit=unit
        )
        return
    reserved = reservation(fleet.specs[unit], fleet.servers[server].budget, fleet.limits)
    fleet.replicas[server][unit] = Replica(
        ReplicaKey(server, unit), after(State.ABSENT, Cause.ADOPTED), reserved, now, reason, now
    )
    fleet.record(ev.Kind.READY, reason, server=server, unit=unit)
    fleet.publish((unit.model,))


def server_lost(fleet: Fleet, event: ev.ServerLost, now: float) -> None:
    server = fleet.servers.get(event.server)
    if server is None:
        return
    health = Health.UNREACHABLE if event.usable else Health.UNUSABLE
    fleet.servers[server.id] = replace(server, health=health, reason=event.reason)
    kind = ev.Kind.SERVER_LOST if event.usable else ev.Kind.SERVER_UNUSABLE
    fleet.record(kind, event.reason, server=server.id)
    forget_replicas(fleet, server.id, event.reason, now)
    fleet.publish((), {server.id})


def forget_replicas(fleet: Fleet, server: str, reason: str, now: float) -> None:
    for replica in list(fleet.replicas.get(server, {}).values()):
        fleet.remove(replica, Cause.LOST, now)
    for unit, want in fleet.wants.items():
        if want.server == server:
            fleet.wants[unit] = want.unplaced(reason)


def index_seen(fleet: Fleet, event: ev.IndexSeen, now: float) -> None:
    """Compare the index with the picture, leaving out what changed since it was read."""
    server = fleet.servers.get(event.server)
    if server is None or server.health is not Health.HEALTHY:
        return
    here = fleet.replicas[server.id]
    for unit, replica in list(here.items()):
        if replica.state in APPLIED and unit not in event.resident and replica.since < event.began:
            fleet.record(
                ev.Kind.UNEXPECTED, "gone from the index unasked", server=server.id, unit=unit
            )
            fleet.remove(replica, Cause.VANISHED, now)
    for unit in sorted(event.resident - here.keys()):
        if fleet.departed.get(ReplicaKey(server.id, unit), event.began) > event.began:
            continue
        if unit in fleet.specs:
            fleet.record(ev.Kind.UNEXPECTED, "in the index unasked", server=server.id, unit=unit)
            adopt(fleet, server.id, unit, "found in the server's index", now)


def measured(fleet: Fleet, event: ev.Measured, now: float) -> None:
    server = fleet.servers.get(event.server)
    if server is None:
        return
    fleet.servers[server.id] = replace(server, measured=event.total)
    for unit, amount in event.units.items():
        replica = fleet.replicas[server.id].get(unit)
        if replica is None or replica.state not in OCCUPYING or unit not in fleet.specs:
            continue
        measured = replace(replica, measured=memory.highest(replica.measured, amount))
        fleet.put(resized(fleet, measured))
        settled = replica.state is State.READY and now - replica.since >= SETTLED_SECONDS
        if settled or fleet.specs[unit].learned:
            fleet.learn(measured)


def resized(fleet: Fleet, replica: Replica) -> Replica:
    spec = fleet.specs[replica.unit]
    now_known = reservation_of_resident(replica, spec, fleet.limits)
    if replica.state is not State.READY:  # it may still grow towards what was reserved
        now_known = memory.highest(now_known, replica.reserved)
    return replace(replica, reserved=now_known)


def repay(fleet: Fleet, server: Server, now: float) -> None:
    """Evict until what stays fits: it grew beyond what was reserved, or came unasked."""
    here = fleet.replicas.get(server.id, {})
    while shortage := overfull(fleet, server):
        families = victims.families(set(), fleet.view(server), fleet.specs)
        if not families:
            return
        for unit in victims.ensembles_first(families[0], fleet.view(server), fleet.specs):
            draining.withdraw(fleet, here[unit], f"{server.id} is over {shortage}", None, "", now)


def overfull(fleet: Fleet, server: Server) -> str:
    """By how much what is on the server, or has a place there, is too much; empty when it fits."""
    here = fleet.replicas.get(server.id, {})
    staying = [r for r in here.values() if r.state not in (State.DRAINING, State.UNLOADING)]
    over = memory.excess(residents.reserved(staying), server.budget)
    if over:
        return f"its budget by {memory.text(over)}"
    slots = residents.slots_used(staying, fleet.specs)
    if server.max_models and slots > server.max_models:
        return f"its {server.max_models} models by {slots - server.max_models}"
    return ""
