"""What must hold of the engine's state after every event, computed from scratch."""

from collections import defaultdict

from services.controller.core import demand, placing, victims
from services.controller.core.accounts import Account
from services.controller.core.entities import Replica, ReplicaKey
from services.controller.core.fleet import Fleet
from services.controller.core.residency import Engine
from services.controller.core.states import State
from services.controller.core.timers import STEP_SECONDS

FIGURES = ("planned", "leaving", "queued")
COUNTS = ("planned_slots", "leaving_slots", "queued_slots", "loads", "waiting")


def check(engine: Engine, now: float | None = None) -> None:
    """`now`: of the engine's last event, when what is due is to be checked too."""
    fleet = engine.fleet
    nothing_is_left_over(fleet)
    accounts_add_up(fleet)
    indexes_are_right(fleet)
    orders_are_right(fleet)
    use_adds_up(fleet)
    wants_are_in_hand(fleet)
    it_will_be_woken(engine, now)


def nothing_is_left_over(fleet: Fleet) -> None:
    for left in (fleet.fresh, fleet.arrived, fleet.displaced, fleet.out):
        assert not left


def accounts_add_up(fleet: Fleet) -> None:
    for server, here in fleet.replicas.items():
        expected, found = Account(), fleet.accounts[server]
        for replica in here.values():
            expected.add(replica, 1)
        for name in FIGURES:
            sums, right = getattr(found, name), getattr(expected, name)
            assert {k: v for k, v in sums.items() if v} == {k: v for k, v in right.items() if v}
        for name in COUNTS:
            assert getattr(found, name) == getattr(expected, name), name


def indexes_are_right(fleet: Fleet) -> None:
    where, of_model = defaultdict(set), defaultdict(set)
    for server, here in fleet.replicas.items():
        for unit, replica in here.items():
            assert replica.key == (server, unit)
            assert replica.state is not State.ABSENT
            where[unit].add(server)
            of_model[unit.model].add(replica.key)
    assert fleet.where == where
    assert {model: set(keys) for model, keys in fleet.of_model.items()} == of_model
    users = defaultdict(set)
    for spec in fleet.specs.values():
        for part in spec.requires:
            users[part].add(spec.unit)
    assert fleet.users == users
    assert fleet.pinned == {unit for unit, spec in fleet.specs.items() if spec.pinned}
    assert fleet.kept == {unit for unit, spec in fleet.specs.items() if spec.kept}
    assert fleet.own_ttl == {unit for unit, spec in fleet.specs.items() if spec.idle_ttl}
    ready = {r.key for here in fleet.replicas.values() for r in here.values() if is_ready(r)}
    assert {key for key in ready if key.unit not in fleet.specs} <= fleet.strangers
    versions = {unit for units in fleet.versions.values() for unit in units}
    assert versions == fleet.specs.keys()
    assert sum(map(len, fleet.versions.values())) == len(versions), "a version is listed twice"


def is_ready(replica: Replica) -> bool:
    return replica.state is State.READY


def orders_are_right(fleet: Fleet) -> None:
    """Every READY replica is in its server's order, once, with its rank."""
    for server, here in fleet.replicas.items():
        uses = fleet.uses[server]
        assert uses.keys() == here.keys()
        ready = sorted((uses[u].rank, u) for u, r in here.items() if r.state is State.READY)
        assert list(victims.in_order(fleet, server)) == ready
        if ready:
            assert fleet.orders[server].lowest() <= ready[0][0]


def use_adds_up(fleet: Fleet) -> None:
    counts: dict[ReplicaKey, tuple[int, int]] = {}
    for view in fleet.routers.values():
        for key, (in_flight, sequences) in view.in_use.items():
            before = counts.get(key, (0, 0))
            counts[key] = (before[0] + in_flight, before[1] + sequences)
    draining = set()
    for here in fleet.replicas.values():
        for replica in here.values():
            use = fleet.use(replica.key)
            assert (use.in_flight, use.sequences) == counts.pop(replica.key, (0, 0))
            if replica.state is State.DRAINING:
                draining.add(replica.key)
            if replica.key in fleet.use_leases:
                assert replica.state is State.READY
                assert fleet.use_leases[replica.key], "a key without a lease"
    assert not counts, "use of what is not there"
    assert set(fleet.drains) == draining
    for drain in fleet.drains.values():
        assert drain.routers <= fleet.routers.keys()
    for key in fleet.use_leases:
        assert fleet.replica(key) is not None


def wants_are_in_hand(fleet: Fleet) -> None:
    """Whatever is wanted has a place or is in the queue; what has a place is wanted."""
    assert fleet.unplaced == sorted(fleet.turns.values())
    assert all(turn[1] == unit for unit, turn in fleet.turns.items())
    asked = {waiter: unit for unit, waiting in fleet.waiting.items() for waiter in waiting}
    assert fleet.asked == asked
    assert all(fleet.waiting.values())
    assert fleet.waiting.keys() <= fleet.wants.keys()
    assert fleet.wants.keys() <= fleet.specs.keys()
    assert fleet.turns.keys() <= fleet.wants.keys()
    for unit, want in fleet.wants.items():
        placed = placing.has_place(fleet, want)
        assert placed != (unit in fleet.turns), f"{want} is forgotten, or queued though placed"
        assert len(fleet.ready(unit)) < want.target
    for claimed, unit in fleet.claims.items():
        assert unit in fleet.turns
        assert fleet.servers[claimed].accepting
    assert len(set(fleet.claims.values())) == len(fleet.claims)
    for here in fleet.replicas.values():
        for replica in here.values():
            if replica.state is State.QUEUED:
                assert demand.wants_there(fleet, replica.key), f"nobody wants {replica.key}"
                assert fleet.servers[replica.key.server].accepting
    for server in fleet.servers.values():
        account = fleet.accounts[server.id]
        over = account.excess(server, server.budget, server.max_models)
        assert not (over and account.waiting), f"{over} too much for what waits on {server.id}"


def it_will_be_woken(engine: Engine, now: float | None) -> None:
    fleet, wake = engine.fleet, engine.next_wake()
    limits = fleet.limits
    assert fleet.asked.keys() <= {waiter for _, waiter in fleet.deadlines}
    leases = {lease for leases in fleet.use_leases.values() for lease in leases}
    assert leases <= {lease for _, lease in fleet.lease_ends} & fleet.lease_keys.keys()
    due = [view.heard + limits.router_seconds for view in fleet.routers.values()]
    due += [ends for ends, lease in fleet.lease_ends if lease in leases]
    due += [
        waiter.deadline - limits.answer_margin_seconds
        for waiting in fleet.waiting.values()
        for waiter in waiting.values()
    ]
    assert not due or (wake is not None and wake <= min(due) + 2 * STEP_SECONDS)
    assert now is None or all(when > now - 2 * STEP_SECONDS for when in due), "it is overdue"
