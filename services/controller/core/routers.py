"""A Router as the engine knows it, and a drain that waits for Routers."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from services.controller.core.entities import ReplicaKey

NOT_ACKED: Final = -1
NOT_USED: Final[Mapping[ReplicaKey, tuple[int, int]]] = {}


class RouterView(NamedTuple):
    """A Router process, as far as it is known."""

    #: When it was last heard from, in seconds of the engine's clock.
    heard: float
    #: The newest revision that it has applied.
    acked: int = NOT_ACKED
    #: Requests and sequences that it has in flight, by replica, as of its last heartbeat.
    in_use: Mapping[ReplicaKey, tuple[int, int]] = NOT_USED


class Drain(NamedTuple):
    """A withdrawal that waits until no Router can send to the replica."""

    #: The revision that withdrew the replica.
    revision: int
    #: The Routers that have not drained it yet, among those that have joined.
    routers: frozenset[str]


def has_drained(view: RouterView, key: ReplicaKey, revision: int) -> bool:
    """Return whether the Router applied the withdrawal and has nothing in flight on the replica.

    Heartbeats and acks come in order on one stream, so the first heartbeat after the ack says so
    even if the Router's own message was lost with a broken stream.
    """
    return view.acked >= revision and key not in view.in_use
