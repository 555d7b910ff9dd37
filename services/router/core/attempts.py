"""Decides what becomes of a request after each attempt, whether it came alone or in a stream.

An attempt ends with an answer, or with a `Verdict` on why there is none. Then the request goes back
to its client, or is sent again: without limit while its client waits, if no server started on it;
once and within a budget, if a server broke off with it, since the request may be what broke the
server; never, once a part of its reply has reached the client. A request whose model called another
one in vain is sent again once as well, beside that model, or else its answer stands."""

import enum
from typing import Final, NamedTuple

from services.router.core.admission.rate import RetryBudget
from services.router.core.routing.routes import Replica
from services.router.core.wire.verdict import Verdict

PAUSE_SECONDS: Final = 0.02  # the longest pause after the first miss; doubles with each
MAX_PAUSE_SECONDS: Final = 0.5
PATIENCE_SECONDS: Final = 60.0  # of misses until a client without a deadline is refused


class Progress(enum.Enum):
    """How far the reply to a request has come.

    NONE       Nothing of it has been passed on.
    PARTLY     The client has received a part of it.
    UNCERTAIN  It cannot be told from the reply to another request with the same id."""

    NONE = enum.auto()
    PARTLY = enum.auto()
    UNCERTAIN = enum.auto()


class Action(enum.Enum):
    """What to do with a request.

    ANSWER  Pass the server's own answer on.
    AGAIN   Ask the Controller for a replica and send the request there, after a pause.
    ONCE    Like AGAIN, but at most once, and within the budget for repeats.
    BESIDE  Like ONCE, but the server's own answer is passed on if it is not sent again.
    LOSE    Refuse the request as lost together with its server."""

    ANSWER = enum.auto()
    AGAIN = enum.auto()
    ONCE = enum.auto()
    BESIDE = enum.auto()
    LOSE = enum.auto()


ACTIONS: Final = {
    (Verdict.ANSWER, Progress.NONE): Action.ANSWER,
    (Verdict.ANSWER, Progress.PARTLY): Action.ANSWER,
    (Verdict.ANSWER, Progress.UNCERTAIN): Action.ANSWER,
    (Verdict.MISS, Progress.NONE): Action.AGAIN,
    (Verdict.MISS, Progress.PARTLY): Action.LOSE,
    (Verdict.MISS, Progress.UNCERTAIN): Action.LOSE,
    (Verdict.UNREACHED, Progress.NONE): Action.AGAIN,
    (Verdict.UNREACHED, Progress.PARTLY): Action.LOSE,
    (Verdict.UNREACHED, Progress.UNCERTAIN): Action.LOSE,
    (Verdict.BROKEN, Progress.NONE): Action.ONCE,
    (Verdict.BROKEN, Progress.PARTLY): Action.LOSE,
    (Verdict.BROKEN, Progress.UNCERTAIN): Action.LOSE,
    (Verdict.UNHEALTHY, Progress.NONE): Action.ONCE,
    (Verdict.UNHEALTHY, Progress.PARTLY): Action.LOSE,
    (Verdict.UNHEALTHY, Progress.UNCERTAIN): Action.LOSE,
    (Verdict.NEEDS_PART, Progress.NONE): Action.BESIDE,
    (Verdict.NEEDS_PART, Progress.PARTLY): Action.ANSWER,
    (Verdict.NEEDS_PART, Progress.UNCERTAIN): Action.ANSWER,
}


class Miss(NamedTuple):
    """A server that did not have what it was asked for. `unhealthy` says that the model's process
    there is dead. `called` names what the model called that was not resident beside it."""

    server: str
    unhealthy: bool
    called: str = ""


class Loss(NamedTuple):
    """A server that was lost while it had a request, as the Controller is told.

    `earlier` is the replica with which the same request was lost before. `repeated` says that the
    request is sent once more."""

    replica: Replica
    earlier: Replica | None
    repeated: bool


class Attempts(NamedTuple):
    """What has come of one request so far."""

    #: Whether it may be sent again after a server broke off with it.
    repeatable: bool
    #: The number of attempts that brought nothing.
    misses: int = 0
    #: The server of the last miss, until the Controller has been told.
    missed: Miss | None = None
    #: The replica that was lost with it, if one was.
    lost_on: Replica | None = None
    #: When a client without a deadline is refused, in seconds of the monotonic clock.
    until: float = 0.0

    @property
    def asks(self) -> bool:
        """Whether the next attempt goes where the Controller says, rather than by the table."""
        return self.missed is not None or self.lost_on is not None

    def withdrawn(self) -> "Attempts":
        """Return what holds if the replica that the Controller named was withdrawn before the
        request could be sent."""
        return self._replace(missed=None)


#: Of a request that has not been sent: whether it may be repeated.
FIRST: Final = {True: Attempts(repeatable=True), False: Attempts(repeatable=False)}


class Step(NamedTuple):
    """What to do next: ANSWER, AGAIN or LOSE."""

    action: Action
    #: To be told to the Controller first.
    loss: Loss | None = None
    #: Seconds to wait before AGAIN.
    pause: float = 0.0
    #: What holds for the request after AGAIN.
    attempts: Attempts | None = None


_ANSWER: Final = Step(Action.ANSWER)


def next_step(
    verdict: Verdict,
    progress: Progress,
    replica: Replica,
    attempts: Attempts,
    *,
    deadline: float | None,
    now: float,
    chance: float,
    budget: RetryBudget,
    called: str = "",
) -> Step:
    """Return what to do with a request for which `replica` gave `verdict`; for NEEDS_PART, `called`
    is the name of the part.

    Takes from `budget` only what the step spends. Pauses grow exponentially and are spread over
    their upper half by `chance`, in [0, 1), so that the requests hit by one crash do not all return
    at once (Brooker, "Exponential Backoff And Jitter", 2015). A request whose `deadline` would pass
    during the pause is lost. `deadline` and `now` are in seconds of the monotonic clock."""
    action = ACTIONS[verdict, progress]
    if action is Action.ANSWER:
        return _ANSWER
    until = attempts.until or now + PATIENCE_SECONDS
    longest = min(MAX_PAUSE_SECONDS, PAUSE_SECONDS * 2 ** min(attempts.misses, 16))
    pause = longest * (1.0 + chance) / 2
    in_time = now <= until if deadline is None else now + pause < deadline
    again = action is not Action.LOSE and in_time
    if again and action in (Action.ONCE, Action.BESIDE):
        again = attempts.repeatable and budget.retry(now)
    broken = verdict is Verdict.BROKEN
    loss = Loss(replica, attempts.lost_on, again) if broken else None
    if not again:
        return _ANSWER if action is Action.BESIDE else Step(Action.LOSE, loss)
    following = Attempts(
        repeatable=attempts.repeatable and action is Action.AGAIN,
        misses=attempts.misses + 1,
        missed=Miss(replica.server, verdict is Verdict.UNHEALTHY, called),
        lost_on=replica if broken else attempts.lost_on,
        until=until,
    )
    return Step(Action.AGAIN, loss, pause, following)
