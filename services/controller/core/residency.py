"""The residency engine: events in, instructions out.

It decides what is loaded where, what has to leave for it, and when that may happen. It does
nothing itself, reads no clock (`now` is an argument, seconds that only grow) and draws no random
numbers, so the service, the tests and a simulation run the same code.

Invariants, after every event:

- What occupies a server (loading, ready, draining, unloading) was within its budget and its number
  of models when the last load started; a resident that turned out larger is evicted for before
  anything else is loaded.
- A replica is told to unload only after every Router that could send to it has drained it, or has
  not been heard from for `router_seconds`.
- A unit is loaded once for all that wait for it. Every waiter is answered once.
- Pinned replicas, the parts of present ensembles, and replicas whose use lease has not started are
  never evicted.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from services.controller.core import demand, draining, loading, reconcile
from services.controller.core import events as ev
from services.controller.core.entities import Health, Limits, Server
from services.controller.core.fleet import Fleet

Reaction = Callable[[Fleet, Any, float], None]

REACTIONS: Final[dict[type, Reaction]] = {
    ev.CatalogChanged: reconcile.catalog_changed,
    ev.ServerFound: reconcile.server_found,
    ev.ServerLost: reconcile.server_lost,
    ev.IndexSeen: reconcile.index_seen,
    ev.Measured: reconcile.measured,
    ev.ResidentWanted: demand.resident_wanted,
    ev.WaiterGone: demand.waiter_gone,
    ev.EvictionWanted: demand.eviction_wanted,
    ev.Loaded: loading.loaded,
    ev.LoadFailedOnServer: loading.load_failed,
    ev.Unloaded: loading.unloaded,
    ev.RouterJoined: draining.router_joined,
    ev.RouterAcked: draining.of_live_router(draining.router_acked),
    ev.RouterDrained: draining.of_live_router(draining.router_drained),
    ev.RouterStarted: draining.of_live_router(draining.router_started),
    ev.RouterUsed: draining.of_live_router(draining.router_used),
    ev.Tick: lambda fleet, event, now: None,
}


class Engine:
    """All state of residency, and the one way to change it: `handle`.

    `now`: seconds of the clock that `handle` is told. `unload_from`: on the same clock, when the
    Routers of an earlier Controller have come back or lost their leases: until then they may send
    by its table."""

    def __init__(
        self, limits: Limits, servers: Iterable[Server], now: float, unload_from: float
    ) -> None:
        self.fleet = Fleet(limits, now, unload_from)
        self.fleet.servers.update((server.id, server) for server in servers)
        self.fleet.replicas.update((server, {}) for server in self.fleet.servers)

    def handle(self, event: ev.Event, now: float) -> list[ev.Instruction]:
        """Take one event in; return what is to be done, in order."""
        REACTIONS[type(event)](self.fleet, event, now)
        _advance(self.fleet, now)
        out, self.fleet.out = self.fleet.out, []
        return out


def _advance(fleet: Fleet, now: float) -> None:
    """What follows from the state as it is now, whatever the event was."""
    _age(fleet, now)
    draining.expire(fleet, now)
    demand.expire(fleet, now)
    demand.finish_evictions(fleet, now)  # before the same unit may be placed there again
    demand.want_pinned(fleet, now)
    demand.abandon(fleet, now)
    demand.grant(fleet, now)  # before anything is evicted: its lease protects what was waited for
    for server in fleet.servers.values():
        reconcile.repay(fleet, server, now)
    loading.place(fleet, now)
    draining.finish_drains(fleet, now)
    loading.start_loads(fleet, now)


def _age(fleet: Fleet, now: float) -> None:
    if any(server.health is Health.HEALTHY for server in fleet.servers.values()):
        fleet.healthy_at = now
    for key, when in list(fleet.departed.items()):
        if now - when > fleet.limits.router_seconds:
            del fleet.departed[key]
