"""When units are used, and what is loaded ahead of its next use."""

from services.controller.core.entities import ReplicaKey, Unit
from services.controller.core.limits import Limits
from services.controller.core.prediction import Forecast, Patterns

VISIT_SECONDS = 10.0  # uses of a replica that follow closer are not learned from one by one


class Habits:
    """The habits of all units, and the loads that were made because of them."""

    __slots__ = (
        "_learning",
        "_limits",
        "patterns",
        "predicted",
        "predictions",
        "predictions_hit",
        "wall",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._learning = limits.predict
        #: When each unit was used, and when it will be.
        self.patterns = Patterns()
        #: Seconds since the epoch at which the engine's clock stood at zero; 0.0 until a tick has
        #: told, and nothing is learned until then.
        self.wall = 0.0
        #: Replicas loaded ahead of a use that has not come yet, and until when it counts as
        #: expected, in seconds of the engine's clock.
        self.predicted: dict[ReplicaKey, float] = {}
        #: Loads ahead of an expected use, since the start.
        self.predictions = 0
        #: How many of them were used in time.
        self.predictions_hit = 0

    def asked(self, unit: Unit, now: float) -> None:
        """A request waits for `unit`."""
        if self._learning and self.wall:
            self.patterns.used(unit, self.wall + now)

    def used(self, key: ReplicaKey, used: float, used_before: float) -> None:
        """A request used the replica at `used`, after one at `used_before`."""
        if not self._learning:
            return
        if self.predicted.pop(key, None) is not None:
            self.predictions_hit += 1
        if self.wall and used - used_before > VISIT_SECONDS:
            self.patterns.used(key.unit, self.wall + used)

    def loaded_ahead(self, key: ReplicaKey, now: float) -> None:
        self.predictions += 1
        self.predicted[key] = now + 2 * self._limits.predict_seconds

    def forget_replica(self, key: ReplicaKey) -> None:
        self.predicted.pop(key, None)

    def forget_unit(self, unit: Unit) -> None:
        self.patterns.forget(unit)

    def forecast(self, wall: float, now: float) -> list[Forecast]:
        """Return what is expected to be used soon, the likeliest first. `wall`: `now` in seconds
        since the epoch. Empty where nothing is predicted."""
        if not (self._learning and wall):
            return []
        self.wall = wall - now
        for key, until in list(self.predicted.items()):
            if now > until:
                del self.predicted[key]
        return self.patterns.forecast(wall, self._limits.predict_seconds)
