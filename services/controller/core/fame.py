"""The uses of units that are resident nowhere, kept until they come back."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from services.controller.core.entities import Unit

MOST: Final = 200_000  # units; of more, those that were used least are forgotten


class Faded(NamedTuple):
    """Uses that count half after every half-life, as of `at` (seconds of the engine's clock)."""

    uses: float
    at: float

    def faded(self, now: float, half_life: float) -> float:
        """The uses as of `now`; those of a later time are not faded."""
        halves = max(0.0, now - self.at) / half_life
        return self.uses * float(0.5**halves)


class Fame:
    """A bounded table of faded uses by unit."""

    __slots__ = ("_half_life", "_most", "by_unit")

    def __init__(self, half_life: float, most: int = MOST) -> None:
        self._half_life = half_life
        self._most = most
        #: The uses of each unit as of when its last replica left.
        self.by_unit: dict[Unit, Faded] = {}

    def keep(self, unit: Unit, uses: Faded) -> None:
        """Remember the uses of a replica that leaves, beside those of other replicas that left."""
        known = self.by_unit.get(unit)
        if known is not None:
            newer = max(known.at, uses.at)
            half_life = self._half_life
            uses = Faded(known.faded(newer, half_life) + uses.faded(newer, half_life), newer)
        self.by_unit[unit] = uses
        if len(self.by_unit) > self._most:
            self._forget_some(uses.at)

    def take(self, unit: Unit, now: float) -> float:
        """The uses of a unit that comes back, as of `now`; they are its replica's from here on."""
        uses = self.by_unit.pop(unit, None)
        return uses.faded(now, self._half_life) if uses is not None else 0.0

    def forget(self, unit: Unit) -> None:
        self.by_unit.pop(unit, None)

    def _forget_some(self, now: float) -> None:
        """Forget the tenth that has been used least, so that this is seldom done."""
        ordered = sorted(self._counts(now))
        for _, unit in ordered[: len(ordered) // 10 + 1]:
            del self.by_unit[unit]

    def _counts(self, now: float) -> Iterator[tuple[float, Unit]]:
        for unit, uses in self.by_unit.items():
            yield uses.faded(now, self._half_life), unit
