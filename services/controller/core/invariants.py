"""What must hold of the engine's state after every event, worked out from scratch.

Nothing is changed by asking, and an answer costs as much as there is state.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from services.controller.core import placement, placing
from services.controller.core.accounts import Account
from services.controller.core.entities import ReplicaKey, Unit
from services.controller.core.fleet import Fleet
from services.controller.core.roster import LOOK_AT_ALL
from services.controller.core.states import COMING, State
from services.controller.core.timers import STEP_SECONDS

SUMS: Final = ("staying", "leaving", "queued")
COUNTS: Final = ("staying_slots", "leaving_slots", "queued_slots", "loads", "overdue", "waiting")


def check(fleet: Fleet, now: float) -> list[str]:
    """The invariants that are broken after an event at `now`, a sentence each; empty where all
    hold."""
    return [broken for invariant in INVARIANTS for broken in invariant(fleet, now)]


# --- the picture ----------------------------------------------------------------------------------


def events_are_done_with(fleet: Fleet, now: float) -> Iterator[str]:
    agenda = fleet.agenda
    if agenda.fresh or agenda.arrived or agenda.displaced:
        yield "Wants, arrivals or departures are left to look at."
    if fleet.out:
        yield f"{len(fleet.out)} instructions were not given."


def accounts_add_up(fleet: Fleet, now: float) -> Iterator[str]:
    for server, here in fleet.replicas.items():
        right, found = Account(), fleet.accounts[server]
        for replica in here.values():
            right.add(replica, 1)
        for name in SUMS:
            kept, added = (
                {resource: size for resource, size in getattr(account, name).items() if size}
                for account in (found, right)
            )
            if kept != added:
                yield f"The account of {server} says {name} {kept}; its replicas add up to {added}."
        for name in COUNTS:
            kept, added = getattr(found, name), getattr(right, name)
            if kept != added:
                yield f"The account of {server} says {name} {kept}; its replicas add up to {added}."


def budgets_hold(fleet: Fleet, now: float) -> Iterator[str]:
    """A server that is over its limit is emptied before anything else is loaded there."""
    for server in fleet.servers.values():
        account = fleet.accounts[server.id]
        over = account.excess(server, server.budget, server.max_models)
        if over and account.waiting:
            yield f"{server.id} is over its limit by {dict(over)}, and loads wait there."


def replicas_are_indexed(fleet: Fleet, now: float) -> Iterator[str]:
    where, of_model = defaultdict[Unit, set[str]](set), defaultdict[str, set[ReplicaKey]](set)
    for server, here in fleet.replicas.items():
        for unit, replica in here.items():
            if replica.key != (server, unit):
                yield f"{replica.key} is kept as {unit} on {server}."
            if replica.state is State.ABSENT:
                yield f"{replica.key} is absent, and kept."
            stranger = replica.state is State.READY and unit not in fleet.known.specs
            if stranger and replica.key not in fleet.strangers:
                yield f"{replica.key} is not in the catalogue, and not known as a stranger."
            where[unit].add(server)
            of_model[unit.model].add(replica.key)
    if fleet.where != where:
        yield "The index of servers by unit does not match the replicas."
    if fleet.of_model != of_model:
        yield "The index of replicas by model does not match the replicas."


def the_catalogue_is_indexed(fleet: Fleet, now: float) -> Iterator[str]:
    known = fleet.known
    users = defaultdict[Unit, set[Unit]](set)
    for spec in known.specs.values():
        for part in spec.requires:
            users[part].add(spec.unit)
    if known.users != users:
        yield "The index of users by part does not match the specs."
    indexes = {
        "pinned": (known.pinned, {unit for unit, spec in known.specs.items() if spec.pinned}),
        "kept": (known.kept, {unit for unit, spec in known.specs.items() if spec.kept}),
        "short-lived": (
            known.own_ttl,
            {unit for unit, spec in known.specs.items() if spec.idle_ttl},
        ),
    }
    for name, (found, right) in indexes.items():
        if found != right:
            yield f"The index of {name} units does not match the specs."
    listed = [unit for units in known.versions.values() for unit in units]
    if len(set(listed)) < len(listed):
        yield "A version is listed twice."
    if set(listed) != known.specs.keys():
        yield "The versions that are listed are not those that have a spec."


# --- use ------------------------------------------------------------------------------------------


def ranks_are_in_order(fleet: Fleet, now: float) -> Iterator[str]:
    """Every READY replica is in its server's order, once, with its rank."""
    for server, here in fleet.replicas.items():
        uses, order = fleet.uses.on[server], fleet.uses.orders[server]
        if uses.keys() != here.keys():
            yield f"The uses on {server} are not those of its replicas."
            continue
        ready = sorted(
            (uses[unit].rank, unit)
            for unit, replica in here.items()
            if replica.state is State.READY
        )
        ranks = {unit: rank for rank, unit in ready}
        if list(order.copy().walk(ranks.get)) != ready:
            yield f"The order of eviction on {server} is not that of its ranks."
        if ready and order.lowest() > ready[0][0]:
            yield f"The order of eviction on {server} begins above the lowest rank."


def use_adds_up(fleet: Fleet, now: float) -> Iterator[str]:
    counts: dict[ReplicaKey, tuple[int, int]] = {}
    for view in fleet.withdrawals.routers.values():
        for key, (in_flight, sequences) in view.in_use.items():
            before = counts.get(key, (0, 0))
            counts[key] = (before[0] + in_flight, before[1] + sequences)
    for here in fleet.replicas.values():
        for replica in here.values():
            use, told = fleet.use(replica.key), counts.pop(replica.key, (0, 0))
            if (use.in_flight, use.sequences) != told:
                yield f"{replica.key} is used by {use.in_flight}, {use.sequences}, not {told}."
    for key in counts:
        yield f"A Router uses {key}, which is not there."


def what_is_told_of_replicas_is_of_present_ones(fleet: Fleet, now: float) -> Iterator[str]:
    for name, keys in (
        ("expected to be used", fleet.habits.predicted),
        ("known for its queue", fleet.pressures.queues),
    ):
        for key in keys:
            if fleet.replica(key) is None:
                yield f"{key} is {name}, and not there."


# --- withdrawals ----------------------------------------------------------------------------------


def withdrawals_have_their_drains(fleet: Fleet, now: float) -> Iterator[str]:
    drains, routers = fleet.withdrawals.drains, fleet.withdrawals.routers
    draining = {
        replica.key
        for here in fleet.replicas.values()
        for replica in here.values()
        if replica.state is State.DRAINING
    }
    for key in draining - drains.keys():
        yield f"{key} is draining, and no drain ends it."
    for key in drains.keys() - draining:
        yield f"A drain of {key} goes on, which is not draining."
    if fleet.withdrawals.drained_by_all.keys() != {
        key for key in drains if not drains[key].routers
    }:
        yield "The drains that wait for no Router are not those that are listed."
    for key, drain in drains.items():
        for router in drain.routers - routers.keys():
            yield f"The drain of {key} waits for {router}, which is not alive."


def use_leases_are_of_ready_replicas(fleet: Fleet, now: float) -> Iterator[str]:
    withdrawals = fleet.withdrawals
    ends = {lease for _, lease in withdrawals.lease_ends}
    for key, leases in withdrawals.use_leases.items():
        replica = fleet.replica(key)
        if replica is None or replica.state is not State.READY:
            yield f"{key} has a use lease, and is not READY."
        if not leases:
            yield f"{key} is held by no use lease."
        for lease in leases:
            if lease not in ends or withdrawals.lease_keys.get(lease, (None,))[0] != key:
                yield f"The use lease {lease} of {key} never runs out."


# --- wants ----------------------------------------------------------------------------------------


def waiters_are_in_one_place(fleet: Fleet, now: float) -> Iterator[str]:
    wants = fleet.wants
    asked = {waiter: unit for unit, waiting in wants.waiting.items() for waiter in waiting}
    if asked != wants.asked or len(asked) != sum(map(len, wants.waiting.values())):
        yield "The waiters are not those that wait for a unit, each for one."
    timed = {waiter for _, waiter in wants.deadlines}
    for waiter, unit in wants.asked.items():
        if waiter not in timed:
            yield f"Waiter {waiter} for {unit} has no deadline."
        if waiter in wants.evictions:
            yield f"Waiter {waiter} waits for {unit}, and for an eviction too."
    for unit, waiting in wants.waiting.items():
        if not waiting:
            yield f"Nobody waits for {unit}, which is listed."
        if unit not in wants.by_unit:
            yield f"{unit} is waited for, and not wanted."
    for waiter, keys in wants.leaving.items():
        if all(fleet.replica(key) is None for key in keys):
            yield f"Waiter {waiter} waits for an eviction that is over."


def wants_are_in_hand(fleet: Fleet, now: float) -> Iterator[str]:
    """Whatever is wanted has a place, or a turn in the queue."""
    wants = fleet.wants
    if wants.unplaced != sorted(wants.turns.values()):
        yield "The queue does not have the turns of the wants in order."
    for unit, turn in wants.turns.items():
        if turn[1] != unit or unit not in wants.by_unit:
            yield f"{unit} has a turn in the queue, and is not wanted."
    for unit, want in wants.by_unit.items():
        if unit not in fleet.known.specs:
            yield f"{unit} is wanted, and not in the catalogue."
            continue
        placed, queued = placing.has_place(fleet, want), unit in wants.turns
        if placed and queued:
            yield f"{unit} has a place on {want.server}, and waits in the queue."
        if not placed and not queued:
            yield f"{unit} is wanted, and neither has a place nor waits in the queue."
        if len(fleet.ready(unit)) >= want.target:
            yield f"{unit} is wanted on {want.target} servers, where it is READY."


def places_are_wanted(fleet: Fleet, now: float) -> Iterator[str]:
    for here in fleet.replicas.values():
        for replica in here.values():
            if replica.state is State.QUEUED:
                if not fleet.wants.placed_at(replica.key):
                    yield f"{replica.key} is queued, and nobody wants it there."
                if not fleet.servers[replica.key.server].accepting:
                    yield f"{replica.key} is queued on a server that takes nothing."


def claims_are_waited_for(fleet: Fleet, now: float) -> Iterator[str]:
    claims = fleet.wants.claims
    for server, unit in claims.items():
        if unit not in fleet.wants.turns:
            yield f"{server} is kept for {unit}, which does not wait for a place."
        if not fleet.servers[server].accepting:
            yield f"{server} is kept for {unit}, and takes nothing."
    if len(set(claims.values())) < len(claims):
        yield "Two servers are kept for one unit."


# --- what comes next ------------------------------------------------------------------------------


def the_roster_is_current(fleet: Fleet, now: float) -> Iterator[str]:
    """The servers that are not to be looked at again stand in the roster as they are."""
    if len(fleet.servers) <= LOOK_AT_ALL:
        return
    for server, room in fleet.roster.rooms().items():
        if server not in fleet.agenda.changed and room != placement.room(fleet, server):
            yield f"The roster has {server} with a room of {room}, which is not so."


def loads_are_looked_at(fleet: Fleet, now: float) -> Iterator[str]:
    """Every load under way is looked at when it is overdue, and those that are do not count."""
    looked_at = {(attempt, key) for _, attempt, key in fleet.agenda.loads}
    for here in fleet.replicas.values():
        for replica in here.values():
            if replica.state is not State.LOADING:
                if replica.overdue and replica.state in COMING:
                    yield f"{replica.key} is overdue, and not loading."
            elif not replica.overdue and (replica.attempt, replica.key) not in looked_at:
                yield f"{replica.key} is loading, and nobody will see that it is overdue."


def it_will_be_woken(fleet: Fleet, now: float) -> Iterator[str]:
    limits, withdrawals = fleet.limits, fleet.withdrawals
    held = {lease for leases in withdrawals.use_leases.values() for lease in leases}
    due = [
        (view.heard + limits.router_seconds, f"{router} is lost")
        for router, view in withdrawals.routers.items()
    ]
    due += [
        (ends, f"the use lease {lease} runs out")
        for ends, lease in withdrawals.lease_ends
        if lease in held
    ]
    due += [
        (waiter.deadline - limits.answer_margin_seconds, f"waiter {waiter.id} is answered")
        for waiting in fleet.wants.waiting.values()
        for waiter in waiting.values()
    ]
    due += [(when, f"the load of {key} is overdue") for when, _, key in fleet.agenda.loads]
    if not due:
        return
    first, what = min(due)
    wake = fleet.agenda.timers.next()
    if wake is None or wake > first + 2 * STEP_SECONDS:
        yield f"The engine is not woken when {what}."
    if first <= now - 2 * STEP_SECONDS:
        yield f"It is {now - first:.3f} s past the time when {what}."


INVARIANTS: Final = (
    events_are_done_with,
    accounts_add_up,
    budgets_hold,
    replicas_are_indexed,
    the_catalogue_is_indexed,
    ranks_are_in_order,
    use_adds_up,
    what_is_told_of_replicas_is_of_present_ones,
    withdrawals_have_their_drains,
    use_leases_are_of_ready_replicas,
    waiters_are_in_one_place,
    wants_are_in_hand,
    places_are_wanted,
    claims_are_waited_for,
    the_roster_is_current,
    loads_are_looked_at,
    it_will_be_woken,
)
