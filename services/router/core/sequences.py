"""Which replica a sequence of requests has begun on, and so stays on."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.router.core.routes import Replica, Target

IDLE_SECONDS: Final = 60.0  # then it is taken for abandoned


@dataclass
class Sequences:
    """By model version and the id that clients chose. Times are the caller's, in seconds."""

    _tied: dict[tuple[Target, int | str], tuple[Replica, float]] = field(default_factory=dict)

    def replica(self, target: Target, id_: int | str) -> Replica | None:
        found = self._tied.get((target, id_))
        return None if found is None else found[0]

    def tie(self, id_: int | str, replica: Replica, now: float) -> None:
        """It has begun there, or goes on there."""
        self._tied[replica.target, id_] = replica, now

    def end(self, target: Target, id_: int | str) -> None:
        self._tied.pop((target, id_), None)

    def used(self, now: float) -> Mapping[Replica, tuple[int, float]]:
        """Of each replica, how many are tied to it, and the seconds since the newest was used."""
        for key, (_, last) in list(self._tied.items()):
            if now - last > IDLE_SECONDS:
                del self._tied[key]
        counts = Counter(replica for replica, _ in self._tied.values())
        newest: dict[Replica, float] = {}
        for replica, last in self._tied.values():
            newest[replica] = max(last, newest.get(replica, last))
        return {replica: (count, now - newest[replica]) for replica, count in counts.items()}
