"""Units that are not tried for a while: they failed to load, or their requests crash servers."""

from dataclasses import dataclass, replace

from services.controller.core import blame
from services.controller.core.blame import Break
from services.controller.core.entities import Unit


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a unit could not be loaded, or is set aside. It is not tried again before
    `until`, in seconds of the engine's clock; `count` is the number of failures in a row."""

    server: str
    cause: str
    until: float
    count: int
    set_aside: bool = False


class Failures:
    """The failures that count, and the requests that broke off with a server."""

    __slots__ = ("breaks", "by_unit", "forgiven_at")

    def __init__(self, now: float) -> None:
        #: The last failure of each unit. It is kept beyond its end, so that the next one counts on.
        self.by_unit: dict[Unit, Failure] = {}
        #: Requests that broke off not long ago, the newest last.
        self.breaks: list[Break] = []
        #: When `forgive` was called last, in seconds of the engine's clock.
        self.forgiven_at = now

    def add(
        self,
        unit: Unit,
        server: str,
        cause: str,
        seconds: tuple[float, float],
        now: float,
        *,
        set_aside: bool = False,
    ) -> Failure:
        """Keep `unit` from being tried for a while. `seconds`: how long the first time, which
        doubles with each failure, and how long at most."""
        count = self.by_unit[unit].count + 1 if unit in self.by_unit else 1
        first, most = seconds
        until = now + min(first * 2 ** (count - 1), most)
        failure = self.by_unit[unit] = Failure(server, cause, until, count, set_aside)
        return failure

    def recall(self, unit: Unit, failure: Failure) -> None:
        """Take in what is known of a failure from before."""
        self.by_unit[unit] = failure

    def clear(self, unit: Unit) -> bool:
        """Forget that `unit` failed: it has loaded, its files have changed, or it is gone. Returns
        whether it had."""
        return self.by_unit.pop(unit, None) is not None

    def forgive(self, now: float, remember_seconds: float) -> list[Unit]:
        """The units that may be tried again since the last call. After another `remember_seconds`
        the next failure counts as the first, and a unit that was set aside is forgotten."""
        over: list[Unit] = []
        for unit, failure in list(self.by_unit.items()):
            if self.forgiven_at < failure.until <= now:
                over.append(unit)
            if now - failure.until > remember_seconds:
                if failure.set_aside:
                    del self.by_unit[unit]
                else:
                    self.by_unit[unit] = replace(failure, count=0)
        self.forgiven_at = now
        return over

    def broke(self, newest: Break) -> None:
        self.breaks.append(newest)

    def lonely(self, now: float, suspect_seconds: float) -> dict[Unit, str]:
        """The units to blame for crashes because only their requests were in flight then, with the
        reason. Their breaks, and those older than `suspect_seconds`, are forgotten."""
        recent = [b for b in self.breaks if now - b.when <= suspect_seconds]
        found = blame.lonely(recent) if recent else {}
        self.breaks = [b for b in recent if b.key.unit not in found]
        return found
