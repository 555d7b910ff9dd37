"""The Routers, what they may still send to, and what is being withdrawn from them."""

from collections.abc import Mapping, Set
from heapq import heappop, heappush

from services.controller.core.agenda import Agenda
from services.controller.core.entities import ReplicaKey
from services.controller.core.limits import Limits
from services.controller.core.routers import Drain, RouterView, has_drained


class Withdrawals:
    """The Router processes, the drains that wait for them, and the use leases that they hold."""

    __slots__ = (
        "_agenda",
        "_limits",
        "awaited",
        "drained_by_all",
        "drains",
        "lease_ends",
        "lease_keys",
        "leases_lent",
        "routers",
        "silent_at",
        "unload_from",
        "use_leases",
    )

    def __init__(
        self, limits: Limits, agenda: Agenda, unload_from: float, followers: Set[str] | None
    ) -> None:
        self._limits = limits
        self._agenda = agenda
        #: When the Routers of earlier Controllers that have not come back count as lost, in seconds
        #: of the engine's clock. Until then they may send by a table of those.
        self.unload_from = unload_from
        #: The Routers of earlier Controllers that have not come back. None if not all are known.
        self.awaited = set(followers) if followers is not None else None
        #: The Routers that are alive, by the name of the process.
        self.routers: dict[str, RouterView] = {}
        #: When the next Router may have been silent for too long, in seconds of the engine's clock.
        self.silent_at = float("-inf")
        #: The DRAINING replicas, and what each of them waits for.
        self.drains: dict[ReplicaKey, Drain] = {}
        #: Those of `drains` that wait for no Router.
        self.drained_by_all: dict[ReplicaKey, None] = {}
        #: The use leases of each replica that neither started nor ran out. Never an empty set.
        self.use_leases: dict[ReplicaKey, set[str]] = {}
        #: When each use lease runs out, in seconds of the engine's clock: a heap. It also has
        #: leases that ended before.
        self.lease_ends: list[tuple[float, str]] = []
        #: The replica of each use lease in `lease_ends` that has not ended, and when it runs out.
        self.lease_keys: dict[str, tuple[ReplicaKey, float]] = {}
        #: Use leases lent since the start; each one's number makes its name unique.
        self.leases_lent = 0

    # --- Routers ----------------------------------------------------------------------------------

    def join(self, router: str, now: float) -> None:
        """Take in a Router that has applied no table yet: every withdrawal waits for it."""
        self.routers[router] = RouterView(now)
        if self.awaited is not None:
            self.awaited.discard(router)
        self._watch_routers(now)
        for key, drain in self.drains.items():
            self._put(key, drain._replace(routers=drain.routers | {router}))

    def leave(self, router: str) -> RouterView:
        """Forget a Router: no withdrawal waits for it any longer. Returns what was known of it."""
        for key, drain in self.drains.items():
            self._put(key, drain._replace(routers=drain.routers - {router}))
        return self.routers.pop(router)

    def heard(self, router: str, now: float) -> bool:
        """Note that a Router is alive. False where it was dropped, and has to join again."""
        view = self.routers.get(router)
        if view is None:
            return False
        self.routers[router] = RouterView(now, view.acked, view.in_use)
        return True

    def acked(self, router: str, revision: int) -> None:
        self.routers[router] = self.routers[router]._replace(acked=revision)

    def used(self, router: str, in_use: Mapping[ReplicaKey, tuple[int, int]]) -> None:
        """Replace what a Router has in flight, by replica: requests and sequences."""
        view = self.routers[router] = self.routers[router]._replace(in_use=in_use)
        for key, drain in list(self.drains.items()):
            if router in drain.routers and has_drained(view, key, drain.revision):
                self._put(key, drain._replace(routers=drain.routers - {router}))

    def all_back(self, now: float) -> bool:
        """Return whether no Router can send by an earlier Controller's table without having joined
        this one. Whoever has joined is waited for by each drain."""
        return now >= self.unload_from or self.awaited == set()

    def followers(self, now: float) -> frozenset[str] | None:
        """Return the Routers that may send by a table of this or an earlier Controller. None while
        not all are known."""
        if self.all_back(now):
            return frozenset(self.routers)
        return None if self.awaited is None else frozenset(self.awaited | self.routers.keys())

    def silent(self, now: float) -> list[tuple[str, float]]:
        """The Routers that have been silent for too long, and for how many seconds."""
        limit = self._limits.router_seconds
        return [
            (router, now - view.heard)
            for router, view in self.routers.items()
            if now >= view.heard + limit
        ]

    def _watch_routers(self, now: float) -> None:
        """Have the engine woken when the Router that was heard from least recently is lost."""
        if self.routers and self.silent_at <= now:
            heard = min(view.heard for view in self.routers.values())
            self.silent_at = heard + self._limits.router_seconds
            self._agenda.timers.at(self.silent_at)

    # --- drains -----------------------------------------------------------------------------------

    def begin(self, key: ReplicaKey, revision: int, now: float) -> None:
        """Wait until every Router has drained a replica that is withdrawn at `revision`."""
        self.end_use_leases(key)
        self._put(key, Drain(revision, frozenset(self.routers)))
        if self.unload_from > now:
            self._agenda.timers.at(self.unload_from)

    def drained(self, key: ReplicaKey, router: str, revision: int) -> None:
        """A Router that has applied `revision` has nothing in flight on the replica."""
        drain = self.drains.get(key)
        if drain is not None and revision >= drain.revision:
            self._put(key, drain._replace(routers=drain.routers - {router}))

    def _put(self, key: ReplicaKey, drain: Drain) -> None:
        self.drains[key] = drain
        if drain.routers:
            self.drained_by_all.pop(key, None)
        else:
            self.drained_by_all[key] = None

    def over(self, key: ReplicaKey, now: float) -> bool:
        """Return whether no Router can send to a replica that is being withdrawn."""
        return not self.drains[key].routers and self.all_back(now)

    def end(self, key: ReplicaKey) -> None:
        del self.drains[key]
        del self.drained_by_all[key]

    def forget(self, key: ReplicaKey) -> None:
        """The replica is gone, and all that Routers had to do with it."""
        self.drains.pop(key, None)
        self.drained_by_all.pop(key, None)
        self.end_use_leases(key)
        for name, view in self.routers.items():
            if key in view.in_use:
                in_use = {other: counts for other, counts in view.in_use.items() if other != key}
                self.routers[name] = view._replace(in_use=in_use)

    # --- use leases -------------------------------------------------------------------------------

    def lend(self, key: ReplicaKey, now: float) -> str:
        """A new use lease: the replica is not evicted for another until it starts or runs out."""
        self.leases_lent += 1
        lease = f"{key.server}-{self.leases_lent}"
        ends = now + self._limits.use_lease_seconds
        self.use_leases.setdefault(key, set()).add(lease)
        self.lease_keys[lease] = key, ends
        heappush(self.lease_ends, (ends, lease))
        self._agenda.timers.at(ends)
        return lease

    def end_use_lease(self, lease: str) -> ReplicaKey | None:
        """The replica that the lease was for, or None where it had ended before."""
        if lease not in self.lease_keys:
            return None
        key, ends = self.lease_keys.pop(lease)
        self._agenda.timers.cancel(ends)
        if lease not in self.use_leases.get(key, ()):
            return None
        self.use_leases[key].discard(lease)
        if not self.use_leases[key]:  # the replica may be evicted again
            del self.use_leases[key]
            self._agenda.look_at_server(key.server)
        return key

    def end_use_leases(self, key: ReplicaKey) -> None:
        self.use_leases.pop(key, None)

    def expire(self, now: float) -> None:
        """End the use leases that have run out, and watch the Routers that are left."""
        self._watch_routers(now)
        while self.lease_ends and self.lease_ends[0][0] <= now:
            self.end_use_lease(heappop(self.lease_ends)[1])
