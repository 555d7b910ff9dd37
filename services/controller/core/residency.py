"""The residency engine: events in, instructions out.

It decides what is loaded where, what has to leave for it, and when that may happen. It does
nothing itself, reads no clock (`now` is an argument: seconds that only grow) and draws no random
numbers, so the service, the tests and a simulation run the same code. An event costs as much as
what it changes, however many servers and models there are.

What holds after every event (`invariants` checks what the state alone can show):

- What occupies a server (loading, ready, draining, unloading) was within its budget and its number
  of models when the last load started; where a resident turned out larger, something is evicted
  before anything else is loaded.
- A replica is told to unload only after every Router that could send to it has drained it, or has
  not been heard from for `router_seconds`.
- A unit is loaded once for all that wait for it. Every waiter is answered once.
- Pinned replicas, the last of a minimum of copies, the parts of present ensembles, replicas with a
  sequence, and replicas whose use lease has not started are never evicted for another.
"""

from collections.abc import Callable, Iterable, Set
from typing import Any, Final

from services.controller.core import (
    demand,
    draining,
    invariants,
    loading,
    placement,
    placing,
    recall,
    reconcile,
    slots,
    upkeep,
)
from services.controller.core import events as ev
from services.controller.core.entities import Server
from services.controller.core.fleet import Fleet
from services.controller.core.history import History
from services.controller.core.limits import Limits
from services.controller.core.roster import LOOK_AT_ALL

Reaction = Callable[[Fleet, Any, float], None]

REACTIONS: Final[dict[type, Reaction]] = {
    ev.CatalogueChanged: reconcile.catalogue_changed,
    ev.UsesRecalled: reconcile.uses_recalled,
    ev.FailuresRecalled: recall.recalled,
    ev.ServerFound: reconcile.server_found,
    ev.ServerLost: reconcile.server_lost,
    ev.DrainWanted: reconcile.drain_wanted,
    ev.IndexSeen: reconcile.index_seen,
    ev.ReplicaBroken: reconcile.replica_broken,
    ev.Measured: reconcile.measured,
    ev.QueuesSeen: upkeep.queues_seen,
    ev.ResidentWanted: demand.resident_wanted,
    ev.WaiterGone: demand.waiter_gone,
    ev.EvictionWanted: demand.eviction_wanted,
    ev.Loaded: loading.loaded,
    ev.LoadFailedOnServer: loading.load_failed,
    ev.LoadHung: loading.load_hung,
    ev.Unloaded: loading.unloaded,
    ev.UnloadHung: loading.unload_hung,
    ev.RouterJoined: draining.router_joined,
    ev.RouterAcked: draining.of_live_router(draining.router_acked),
    ev.RouterDrained: draining.of_live_router(draining.router_drained),
    ev.RouterStarted: draining.of_live_router(draining.router_started),
    ev.RouterUsed: draining.of_live_router(draining.router_used),
    ev.RouterBroke: draining.of_live_router(upkeep.router_broke),
    ev.Due: lambda fleet, event, now: None,
    ev.Tick: upkeep.tick,
}


class Engine:
    """All state of residency, and the one way to change it: `handle`.

    `now` is in seconds of the clock that `handle` is told. `followers` are the Routers that may
    send by the table of an earlier Controller; None if not all are known. Nothing is unloaded until
    all of them have joined, or until `unload_from`, on the same clock: by then the others have lost
    their leases."""

    def __init__(
        self,
        limits: Limits,
        servers: Iterable[Server],
        now: float,
        unload_from: float,
        followers: Set[str] | None = None,
    ) -> None:
        self.fleet = Fleet(limits, now, unload_from, followers)
        self.history = History(now)
        for server in servers:
            self.fleet.add_server(server)

    def handle(self, event: ev.Event, now: float) -> list[ev.Instruction]:
        """Take in an event. Returns what is to be done, in order; the list is not to be changed."""
        REACTIONS[type(event)](self.fleet, event, now)
        _advance(self.fleet, now)
        out = self.fleet.take_instructions()
        self.history.note(now, event, out)
        return out

    def check(self) -> list[str]:
        """The invariants that are broken, a sentence each; empty where all hold."""
        return invariants.check(self.fleet, self.history.now)

    def next_wake(self) -> float | None:
        """The time at which something becomes due though nothing happens: the engine is to be told
        `Due` then. None where there is none."""
        return self.fleet.agenda.timers.next()


def _advance(fleet: Fleet, now: float) -> None:
    """Do all that follows from what has changed, until nothing more does."""
    agenda = fleet.agenda
    if agenda.timers.due(now):
        draining.expire(fleet, now)
        demand.expire(fleet, now)
        slots.note_overdue(fleet, now)
    demand.finish_evictions(fleet, now)
    while agenda.changed or agenda.fresh or agenda.arrived or agenda.displaced:
        demand.finish_evictions(fleet, now)  # before the same unit may be placed there again
        demand.settle(fleet, now)  # before anything is evicted: its lease protects what came
        for server in list(agenda.changed):
            reconcile.repay(fleet, fleet.servers[server], now)
        placing.place(fleet, now)
        draining.finish_drains(fleet, now)
        changed = agenda.take_changed()
        agenda.touched |= changed
        for server in changed:
            loading.start_loads(fleet, fleet.servers[server], now)
    draining.finish_drains(fleet, now)
    _enrol(fleet, agenda.take_touched())


def _enrol(fleet: Fleet, touched: Iterable[str]) -> None:
    """Tell the roster what became of the servers that were touched."""
    for server in touched:
        fleet.curves.forget(server)
    if len(fleet.servers) > LOOK_AT_ALL:
        for server in touched:
            room, lowest = placement.room(fleet, server), placement.lowest(fleet, server)
            fleet.roster.changed(server, room, lowest)
