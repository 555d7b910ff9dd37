"""From the queue to READY: placing, loading in turn, and what comes of it."""

from collections.abc import Iterable
from typing import Final

from services.common.errors import NeverFits, NoRoom, NoServer, ShoalError
from services.controller.core import (
    demand,
    draining,
    memory,
    placement,
    reconcile,
    victims,
)
from services.controller.core import events as ev
from services.controller.core.entities import Replica, ReplicaKey, Server, Unit
from services.controller.core.fleet import Failure, Fleet
from services.controller.core.roster import LOOK_AT_ALL
from services.controller.core.sizing import reservation
from services.controller.core.states import COMING, Cause, State, after
from services.controller.core.victims import Blocked, Terms, Wait
from services.controller.core.waiting import Purpose, Want

ITS_TURN: Final = "waits for its turn on its server"
TRIES: Final = 16  # of the wants that found no place, at each event
COPY_VICTIM_SECONDS: Final = 60.0  # another copy evicts only what was idle for so long


def loaded(fleet: Fleet, event: ev.Loaded, now: float) -> None:
    replica = fleet.at(event.key, event.attempt, State.LOADING)
    if replica is None:
        return
    unit = replica.unit
    if not replica.broken:
        fleet.failures.pop(unit, None)
    fleet.learn_load(unit, event.seconds)
    want = fleet.wants.get(unit)
    if want is not None and want.purpose is Purpose.PREDICTED:
        fleet.predictions += 1
        fleet.predicted[replica.key] = now + 2 * fleet.limits.predict_seconds
    reason = f"loaded in {event.seconds:.2f} s"
    fleet.start_use(replica, now)
    ready = fleet.move(replica, Cause.LOADED, reason, now, load_seconds=event.seconds)
    fleet.record(
        ev.Kind.READY,
        reason,
        server=replica.key.server,
        unit=unit,
        trace_id=demand.trace_of(fleet, unit),
    )
    fleet.publish((unit.model,))
    look_at_host(fleet, replica.key.server)
    if unit in fleet.specs:
        ready = reconcile.resized(fleet, ready)
        fleet.put(ready)
        if ready.broken or parts_gone(fleet, ready):
            draining.withdraw_family(fleet, ready, "it is outdated, or a part of it is gone", now)
    else:
        draining.withdraw_all(fleet, unit, "it left the catalogue while loading", now)


def parts_gone(fleet: Fleet, replica: Replica) -> bool:
    """Whether something that it requires has left its server, or is about to."""
    here = fleet.replicas[replica.key.server]
    return any(
        part not in here or here[part].state not in COMING
        for part in fleet.specs[replica.unit].requires
    )


def look_at_host(fleet: Fleet, server: str) -> None:
    """A load is over: another may start, on any server of the same host."""
    for neighbour in fleet.neighbours(server):
        fleet.changed[neighbour] = None


def load_failed(fleet: Fleet, event: ev.LoadFailedOnServer, now: float) -> None:
    replica = fleet.at(event.key, event.attempt, State.LOADING)
    if replica is not None:
        fleet.remove(replica, Cause.LOAD_FAILED, now)
        if not replica.broken:  # else it was of files that have changed since
            failed(fleet, replica, event.cause, now)


def load_hung(fleet: Fleet, event: ev.LoadHung, now: float) -> None:
    """It may come to an end yet, so it keeps what is reserved for it until it is unloaded."""
    replica = fleet.at(event.key, event.attempt, State.LOADING)
    if replica is not None:
        failed(fleet, replica, event.cause, now)
        draining.unload(fleet, replica, Cause.LOAD_HUNG, event.cause, now)
        look_at_host(fleet, replica.key.server)


def failed(fleet: Fleet, replica: Replica, cause: str, now: float) -> None:
    """Not tried again for a while; what waits for it is told why."""
    unit, server = replica.unit, replica.key.server
    count = fleet.failures[unit].count + 1 if unit in fleet.failures else 1
    backoff = min(fleet.limits.backoff_seconds * 2 ** (count - 1), fleet.limits.max_backoff_seconds)
    failure = Failure(server, cause, now + backoff, count)
    fleet.failures[unit] = failure
    fleet.record(
        ev.Kind.LOAD_FAILED,
        cause,
        server=server,
        unit=unit,
        trace_id=demand.trace_of(fleet, unit),
    )
    fleet.publish((unit.model,))
    for user in demand.with_users(fleet, unit):
        if user in fleet.wants and fleet.wants[user].server not in (None, server):
            continue
        if user in fleet.wants and not (fleet.ready(user)):
            demand.refuse_all(fleet, user, demand.why_failed(unit, failure, now), now)
        elif user in fleet.wants:  # another copy: not worth another try
            want = fleet.wants[user]
            demand.drop(fleet, user)
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
    """Its memory stays reserved: only a restart of the server gives it back."""
    replica = fleet.at(event.key, event.attempt, State.UNLOADING)
    if replica is not None:
        fleet.put(replica._replace(reason=event.cause, broken=True))
        reason = f"{replica.unit} does not unload: {event.cause}"
        reconcile.drain_server(fleet, replica.key.server, reason, restart=True, now=now)


# --- placing --------------------------------------------------------------------------------------


def place(fleet: Fleet, now: float) -> None:
    """Give every new want the best place, and try those that found none again on what changed."""
    lost, fleet.displaced = list(fleet.displaced), {}
    for key in lost:
        for unit in demand.with_users(fleet, key.unit):
            if unit in fleet.wants and fleet.wants[unit].server == key.server:
                fleet.fresh[unit] = None
    fresh, fleet.fresh = list(fleet.fresh), {}
    wants = [fleet.wants[unit] for unit in fresh if unit in fleet.wants]
    for want in sorted(wants, key=lambda want: demand.order(fleet, want)):
        if not has_place(fleet, want):
            demand.leave_queue(fleet, want.unit)
            if want.server is not None:  # something that it needs there is gone
                fleet.wants[want.unit] = want.unplaced(f"lost its place on {want.server}")
                demand.forsake(fleet, want, now)
            try_to_place(fleet, fleet.wants[want.unit], None, now)
    if fleet.unplaced and fleet.changed:
        changed = [server for server in fleet.changed if fleet.servers[server].accepting]
        for _, unit in fleet.unplaced[:TRIES] if changed else ():
            try_again(fleet, unit, changed, now)


def retry(fleet: Fleet, now: float) -> None:
    """Try those that wait for a place on every server: time alone may have made room."""
    most = TRIES * 4 if len(fleet.servers) <= LOOK_AT_ALL else 2
    queue = [unit for _, unit in fleet.unplaced]
    start = fleet.retried % len(queue) if queue else 0  # in turn: the first may wait for long
    fleet.retried = start + most
    for unit in (queue + queue)[start : start + min(most, len(queue))]:
        try_again(fleet, unit, None, now, thorough=True)


def try_again(
    fleet: Fleet, unit: Unit, only: Iterable[str] | None, now: float, *, thorough: bool = False
) -> None:
    want = fleet.wants.get(unit)
    if want is not None and not has_place(fleet, want):
        demand.leave_queue(fleet, want.unit)
        try_to_place(fleet, want, only, now, thorough=thorough)


def has_place(fleet: Fleet, want: Want) -> bool:
    """Whether all that `want` needs is on its server or on its way there."""
    if want.server is None:
        return False
    here = fleet.replicas[want.server]
    return all(
        (replica := here.get(member.unit)) is not None and replica.state in COMING
        for member in fleet.group(fleet.specs[want.unit])
    )


def terms(want: Want, now: float) -> Terms:
    """What may be evicted for a want, by its purpose."""
    if want.purpose >= Purpose.KEPT:
        return Terms()
    if want.purpose is Purpose.COPY:
        return Terms(idle_since=now - COPY_VICTIM_SECONDS)
    return Terms(evict=False)


def try_to_place(
    fleet: Fleet, want: Want, only: Iterable[str] | None, now: float, *, thorough: bool = False
) -> None:
    spec = fleet.specs[want.unit]
    decision = placement.place(fleet, spec, terms(want, now), now, only, thorough=thorough)
    if isinstance(decision, placement.Place):
        take_place(fleet, want, decision, now)
    elif only is not None:
        demand.enqueue(fleet, want)
    elif want.purpose < Purpose.KEPT and want.unit not in fleet.waiting:
        demand.drop(fleet, want.unit)
    elif not give_up(fleet, want, decision, now):
        want = fleet.wants[want.unit] = want._replace(status=decision.reason)
        demand.enqueue(fleet, want)
        if now - want.since > fleet.limits.claim_seconds and isinstance(decision, Wait):
            claim(fleet, want)


def claim(fleet: Fleet, want: Want) -> None:
    """Keep a server for what has waited long: else smaller newcomers would take each bit of room
    as it comes."""
    if want.unit in fleet.claims.values():
        return
    members = fleet.group(fleet.specs[want.unit])
    possible = [
        server.id
        for server in fleet.servers.values()
        if server.accepting
        and server.id not in fleet.claims
        and want.unit not in fleet.replicas[server.id]
        and placement.shortage(fleet, members, server) is None
        and victims.clears(fleet, server.id, members)
    ]
    if possible:
        best = max(possible, key=lambda server: (placement.room_score(fleet, server), server))
        fleet.claims[best] = want.unit


def give_up(fleet: Fleet, want: Want, decision: placement.Decision, now: float) -> bool:
    """Refuse what waiting can't help. Says whether the want is no more."""
    unit = want.unit
    if isinstance(decision, placement.Never):
        error: ShoalError = NeverFits(
            model=unit.model, version=unit.version, shortage=decision.reason
        )
    elif isinstance(decision, Blocked):
        error = NoRoom(
            model=unit.model, version=unit.version, shortage=decision.reason, retry_after=5.0
        )
    elif (
        isinstance(decision, placement.NoServer)
        and now - max(fleet.healthy_at, want.since) > fleet.limits.server_patience_seconds
    ):
        error = NoServer(
            model=unit.model, version=unit.version, servers=decision.reason, retry_after=5.0
        )
    else:
        return False
    demand.refuse_all(fleet, unit, error, now)
    return True


def take_place(fleet: Fleet, want: Want, choice: placement.Place, now: float) -> None:
    server = fleet.servers[choice.server]
    trace_id = demand.trace_of(fleet, want.unit)
    if choice.victims:
        weighed = victims.weighed(fleet, server.id, choice.victims, now)
        fleet.clocks[server.id] = victims.clock_after(fleet, server.id, weighed)
        for unit in choice.victims:
            evict_for(fleet, server.id, unit, want, trace_id, weighed, now)
    for other in [name for name, unit in fleet.claims.items() if unit == want.unit]:
        demand.unclaim(fleet, other)
    needs = [reservation(spec, server.budget, fleet.limits) for spec in choice.units]
    need = memory.total(needs)
    reason = placement.reason(choice, need)
    placed, state = f"{want.why}: {reason}", after(State.ABSENT, Cause.PLACED)
    for spec, reserved in zip(choice.units, needs, strict=True):
        key = ReplicaKey(server.id, spec.unit)
        replica = Replica(key, state, reserved, now, reason, placed, slots=spec.slots)
        fleet.start_use(replica, now)
        fleet.put(replica)
        fleet.record(ev.Kind.QUEUED, reason, server=server.id, unit=spec.unit, trace_id=trace_id)
    fleet.wants[want.unit] = want._replace(
        server=server.id,
        reason=reason,
        status=f"has a place on {server.id}",
        placed_at=now,
        victims=choice.victims,
        reserved_bytes=sum(need.values()),
    )


def evict_for(
    fleet: Fleet,
    server: str,
    unit: Unit,
    want: Want,
    trace_id: str,
    weighed: tuple[ev.Weighed, ...],
    now: float,
) -> None:
    use = fleet.uses[server][unit]
    idle = now - use.last_used
    if fleet.limits.policy == "lru":
        reason = f"least recently used, idle {idle:.1f} s; room for {want.unit}"
    else:
        reason = (
            f"least worth keeping ({use.uses:.2g} recent uses, back in "
            f"{fleet.reload_seconds(unit):.2g} s, idle {idle:.1f} s); room for {want.unit}"
        )
    draining.withdraw(
        fleet,
        fleet.replicas[server][unit],
        reason,
        now,
        for_unit=want.unit,
        trace_id=trace_id,
        weighed=weighed,
    )


# --- loading --------------------------------------------------------------------------------------


def start_loads(fleet: Fleet, server: Server, now: float) -> None:
    if not fleet.accounts[server.id].waiting or not server.accepting:
        return
    queued = [r for r in fleet.replicas[server.id].values() if r.state is State.QUEUED]
    full = fleet.accounts[server.id].loads >= fleet.limits.loads_per_server
    for replica in queued if full else sorted(queued, key=lambda replica: turn(fleet, replica)):
        reason = ITS_TURN if full else obstacle(fleet, replica, server)
        if reason is None:
            start(fleet, replica, now)
        elif reason != replica.reason:
            fleet.put(replica._replace(reason=reason))


def turn(fleet: Fleet, replica: Replica) -> tuple[float, Unit]:
    """That of the most urgent want that needs it."""
    turns = [
        demand.order(fleet, want)
        for unit in demand.with_users(fleet, replica.unit)
        if (want := fleet.wants.get(unit)) is not None and want.server == replica.key.server
    ]
    return min(turns, default=(replica.since, replica.unit))


def obstacle(fleet: Fleet, replica: Replica, server: Server) -> str | None:
    """What the load waits for, or None when it may start."""
    here, account = fleet.replicas[server.id], fleet.accounts[server.id]
    spec = fleet.specs[replica.unit]
    for part in spec.requires:
        if part not in here or here[part].state is not State.READY:
            return f"waits for its part {part}"
    if fleet.changing(replica.key):
        return "waits for another change of the same model"
    other = victims.clashing_with(fleet, server.id, spec)
    if other is not None:
        return f"waits until {other}, whose config differs, is gone"
    if account.loads >= fleet.limits.loads_per_server:
        return ITS_TURN
    host = sum(fleet.accounts[neighbour].loads for neighbour in fleet.neighbours(server.id))
    if host >= fleet.limits.loads_per_host:
        return "waits for its turn on its host"
    if account.loads:
        loading = [r.unit for r in here.values() if r.state is State.LOADING]
        unknown = [u for u in (*loading, replica.unit) if not size_known(fleet, u)]
        if unknown:
            return f"the size of {unknown[0]} is unknown, so it loads alone"
    if not account.fits(replica.reserved, replica.slots, server):
        return "waits until there is room"
    return None


def size_known(fleet: Fleet, unit: Unit) -> bool:
    return unit not in fleet.specs or fleet.specs[unit].size_known


def start(fleet: Fleet, replica: Replica, now: float) -> None:
    fleet.attempt += 1
    server, unit = replica.key
    fleet.move(replica, Cause.STARTED, "loading", now, attempt=fleet.attempt)
    versions = tuple(sorted({*fleet.applied(replica.key), unit.version}))
    fleet.out.append(ev.Load(replica.key, fleet.attempt, versions))
    fleet.record(
        ev.Kind.LOADING,
        f"reserved {memory.text(replica.reserved)}",
        server=server,
        unit=unit,
        trace_id=demand.trace_of(fleet, unit),
    )
    for user in demand.with_users(fleet, unit):
        want = fleet.wants.get(user)
        if want is not None and want.server == server and want.load_began is None:
            fleet.wants[user] = want._replace(load_began=now, status=f"loading on {server}")
