"""The life of a replica: one model version on one server.

QUEUED     has a place on the server; waits for room, for its parts, or for its turn.
LOADING    the server was told to load it.
READY      answers requests; the only state that Routers are told of.
DRAINING   withdrawn from the Routers; what is in flight finishes.
UNLOADING  the server was told to unload it; its memory still counts.

ABSENT is the state of everything that has no record. A load that fails leaves no replica, only a
failure, which keeps the unit from being tried again until its back-off has passed.
"""

import enum
from typing import Final


class State(enum.Enum):
    __hash__ = object.__hash__  # that of an enum is computed in Python, and states are hashed a lot

    ABSENT = "absent"
    QUEUED = "queued"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"


class Cause(enum.Enum):
    __hash__ = object.__hash__

    PLACED = "placed"
    STARTED = "load started"
    LOADED = "load succeeded"
    LOAD_FAILED = "load failed"
    LOAD_HUNG = "load not finished in time"
    ABANDONED = "no longer wanted"
    ADOPTED = "found on the server"
    FOUND_LOADING = "found loading on the server"
    FOUND_UNLOADING = "found unloading on the server"
    EVICTED = "evicted"
    DRAINED = "drained"
    UNLOADED = "unloaded"
    LOST = "lost with its server"
    VANISHED = "gone from the server's index"


TRANSITIONS: Final[dict[tuple[State, Cause], State]] = {
    (State.ABSENT, Cause.PLACED): State.QUEUED,
    (State.ABSENT, Cause.ADOPTED): State.READY,
    (State.ABSENT, Cause.FOUND_LOADING): State.LOADING,
    (State.ABSENT, Cause.FOUND_UNLOADING): State.UNLOADING,
    (State.QUEUED, Cause.STARTED): State.LOADING,
    (State.QUEUED, Cause.ABANDONED): State.ABSENT,
    (State.QUEUED, Cause.LOST): State.ABSENT,
    (State.LOADING, Cause.LOADED): State.READY,
    (State.LOADING, Cause.LOAD_FAILED): State.ABSENT,
    (State.LOADING, Cause.LOAD_HUNG): State.UNLOADING,
    (State.LOADING, Cause.LOST): State.ABSENT,
    (State.READY, Cause.EVICTED): State.DRAINING,
    (State.READY, Cause.VANISHED): State.ABSENT,
    (State.READY, Cause.LOST): State.ABSENT,
    (State.DRAINING, Cause.DRAINED): State.UNLOADING,
    (State.DRAINING, Cause.VANISHED): State.ABSENT,
    (State.DRAINING, Cause.LOST): State.ABSENT,
    (State.UNLOADING, Cause.UNLOADED): State.ABSENT,
    (State.UNLOADING, Cause.LOST): State.ABSENT,
}

# States in which the server holds memory for the replica, or may at any moment.
OCCUPYING: Final = frozenset({State.LOADING, State.READY, State.DRAINING, State.UNLOADING})
# States in which the version is in the server's set of wanted versions.
APPLIED: Final = frozenset({State.READY, State.DRAINING})
# States in which its memory is about to come back.
LEAVING: Final = frozenset({State.DRAINING, State.UNLOADING})
# States in which it answers, or will.
COMING: Final = frozenset({State.QUEUED, State.LOADING, State.READY})
# States in which a call about the model is under way; a server takes one at a time.
CHANGING: Final = frozenset({State.LOADING, State.UNLOADING})


def after(state: State, cause: Cause) -> State:
    """The state that follows `state`. Raises ValueError for a move that the table does not have."""
    try:
        return TRANSITIONS[state, cause]
    except KeyError:
        raise ValueError(f"a replica that is {state.value} cannot be {cause.value}") from None
