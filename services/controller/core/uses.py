"""How each replica is used, and the rank that its server's eviction policy gives it for that."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from services.controller.core.entities import Replica, ReplicaKey, Server, Unit, Use
from services.controller.core.fame import Faded, Fame
from services.controller.core.knowledge import Knowledge
from services.controller.core.limits import Limits
from services.controller.core.ranking import POLICIES, Order, Rank
from services.controller.core.states import State

UNUSED: Final = Use(float("-inf"))
TELL_SECONDS: Final = 60.0  # after which a unit's uses are told again


class Uses:
    """The use of every replica, and the order in which each server's would leave."""

    __slots__ = (
        "_half_life",
        "_known",
        "_servers",
        "_telling",
        "_told_at",
        "by_age",
        "clock",
        "fame",
        "on",
        "orders",
        "rank",
        "untold",
    )

    def __init__(self, limits: Limits, known: Knowledge, servers: Mapping[str, Server]) -> None:
        self._half_life = limits.half_life_seconds
        self._known = known
        self._servers = servers
        #: The eviction policy.
        self.rank: Rank = POLICIES[limits.policy]
        #: Whether a rank is the time of the last use and nothing more.
        self.by_age = limits.policy == "lru"
        #: The use of each replica, by server and unit.
        self.on: dict[str, dict[Unit, Use]] = {}
        #: The READY replicas of each server, in the order in which they would leave.
        self.orders: dict[str, Order] = {}
        #: What the policy ages ranks with: the highest rank evicted so far in the fleet. It stays
        #: at zero where a rank is a time.
        self.clock = 0.0
        #: The uses of what is resident nowhere.
        self.fame = Fame(limits.half_life_seconds)
        #: Units whose uses have changed since they were told.
        self.untold: dict[Unit, None] = {}
        #: Those that are told in this round, and when it began.
        self._telling: dict[Unit, None] = {}
        self._told_at = float("-inf")

    def add_server(self, server: str) -> None:
        self.on[server] = {}
        self.orders[server] = Order()

    def start(self, replica: Replica, now: float, *, loads: bool = True) -> None:
        """Begin to count, beside what is remembered of the unit. A replica that `loads` is used,
        one that was found is not. Called again when it is READY, this changes the time alone."""
        server, unit = replica.key
        before = self.on[server].get(unit)
        if before is not None:
            uses = Faded(before.uses, before.last_used).faded(now, self._half_life)
        else:
            before, remembered = UNUSED, self.fame.take(unit, now)
            uses = remembered + 1.0 if loads else remembered or 1.0
            self.untold[unit] = None
        rank = self._rank_of(replica, now, uses)
        self.on[server][unit] = before._replace(last_used=now, uses=uses, rank=rank)

    def ready(self, replica: Replica) -> None:
        """Take a replica that has become READY into its server's order."""
        server, unit = replica.key
        self.orders[server].push(self.on[server][unit].rank, unit)

    def touch(self, replica: Replica, used: float, requests: int) -> None:
        """Count `requests`, the last of them at `used`, in seconds of the engine's clock."""
        server, unit = replica.key
        here = self.on[server]
        before = here[unit]
        last = max(used, before.last_used)
        faded: float = before.uses * 0.5 ** ((last - before.last_used) / self._half_life)
        uses = faded + requests
        if requests:
            self.untold[unit] = None
        rank = last if self.by_age else self._rank_of(replica, last, uses)
        here[unit] = Use(last, uses, rank, before.in_flight, before.sequences)
        if rank < before.rank and replica.state is State.READY:
            self.orders[server].push(rank, unit)

    def count(self, key: ReplicaKey, in_flight: int, sequences: int) -> None:
        """A Router has so many more requests and sequences in flight there (less: negative)."""
        here = self.on[key.server]
        use = here[key.unit]
        here[key.unit] = use._replace(
            in_flight=max(0, use.in_flight + in_flight),
            sequences=max(0, use.sequences + sequences),
        )

    def forget(self, replica: Replica) -> None:
        """The replica is gone; its uses are kept until its unit comes back."""
        use = self.on[replica.key.server].pop(replica.unit)
        uses = use.uses - 1.0 if replica.state is State.QUEUED else use.uses  # it was not loaded
        if uses > 0.0 and replica.unit in self._known.specs:
            self.fame.keep(replica.unit, Faded(uses, use.last_used))

    def recall(self, unit: Unit, uses: float, last_used: float) -> None:
        """Count on from uses that were kept elsewhere, the last of them at `last_used`."""
        if uses > 0.0:
            self.fame.keep(unit, Faded(uses, last_used))

    def total(self, unit: Unit, servers: Iterable[str]) -> Faded:
        """The uses of a unit that has replicas on `servers`, beside those that are remembered."""
        found = [self.on[server][unit] for server in servers]
        parts = [Faded(use.uses, use.last_used) for use in found]
        if unit in self.fame.by_unit:
            parts.append(self.fame.by_unit[unit])
        last = max((part.at for part in parts), default=float("-inf"))
        return Faded(sum(part.faded(last, self._half_life) for part in parts), last)

    def take_untold(self, now: float, most: int) -> list[Unit]:
        """Up to `most` of the units whose uses are to be told again, each at most once in
        `TELL_SECONDS`."""
        if not self._telling and now - self._told_at >= TELL_SECONDS:
            self._telling, self.untold, self._told_at = self.untold, {}, now
        taken = list(islice(self._telling, most))
        for unit in taken:
            del self._telling[unit]
        return taken

    def forget_unit(self, unit: Unit) -> None:
        """The unit has left the catalogue."""
        self.fame.forget(unit)
        self.untold.pop(unit, None)
        self._telling.pop(unit, None)

    def evicted(self, rank: float) -> None:
        """Take in the rank of a replica that leaves for another."""
        if not self.by_age:
            self.clock = max(self.clock, rank)

    def share(self, replica: Replica) -> float:
        """The largest share of anything budgeted on its server that the replica takes, in [0, 1];
        1.0 where nothing is budgeted."""
        server = self._servers[replica.key.server]
        shares = [replica.reserved.get(name, 0) / size for name, size in server.budget.items()]
        if server.max_models:
            shares.append(replica.slots / server.max_models)
        return max(shares, default=1.0)

    def _rank_of(self, replica: Replica, last_used: float, uses: float) -> float:
        reload = self._known.reload_seconds(replica.unit)
        return self.rank(last_used, uses, reload, self.share(replica), self.clock)
