"""What the engine knows of the Router processes, and when a withdrawn replica is drained."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.controller.core.entities import ReplicaKey

NOT_ACKED = -1


@dataclass(frozen=True, slots=True)
class RouterView:
    """`acked`: the newest revision that it applied; `in_use`: requests and sequences in flight by
    replica, as of its last heartbeat."""

    heard: float
    acked: int = NOT_ACKED
    in_use: Mapping[ReplicaKey, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drain:
    """A withdrawal at `revision` that waits for `routers`, and in any case until `not_before`:
    after a start there may be Routers that have not come back yet and still use their table."""

    revision: int
    routers: frozenset[str]
    not_before: float

    def over(self, now: float) -> bool:
        return not self.routers and now >= self.not_before


def has_drained(view: RouterView, key: ReplicaKey, revision: int) -> bool:
    """Whether the Router applied the withdrawal and has nothing in flight on the replica.

    Heartbeats and acks come in order on one stream, so the last heartbeat after the ack says it
    even when the Router's own word of it was lost with a broken stream.
    """
    return view.acked >= revision and key not in view.in_use
