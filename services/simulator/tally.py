"""What is counted, the same for every policy."""

import math
from array import array
from dataclasses import asdict, dataclass, field

#: The fields of a tally that `figures` tells by other means.
_UNTOLD = ("waits",)


@dataclass(slots=True)
class Tally:
    """`hits`: requests for a model that was READY. `cold_starts`: loads that were begun.
    `load_seconds`: of all of those. `waited_seconds`: of all requests that waited, each its own
    wait: whoever comes while a model is loading waits, too. `refused`: got an error instead.
    `waits`: the seconds of every wait."""

    requests: int = 0
    hits: int = 0
    bytes_requested: int = 0
    bytes_hit: int = 0
    cold_starts: int = 0
    load_seconds: float = 0.0
    waited_seconds: float = 0.0
    evictions: int = 0
    refused: int = 0
    waits: "array[float]" = field(default_factory=lambda: array("d"), repr=False, compare=False)

    def waited(self, seconds: float) -> None:
        """Count a request that had to wait."""
        self.waited_seconds += seconds
        self.waits.append(seconds)

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests if self.requests else 0.0

    @property
    def byte_hit_rate(self) -> float:
        return self.bytes_hit / self.bytes_requested if self.bytes_requested else 0.0

    @property
    def longest_wait(self) -> float:
        """The longest wait of a single request, in seconds."""
        return max(self.waits, default=0.0)

    def quantile(self, share: float) -> float:
        """The wait, in seconds, that `share` of all requests did not exceed. Most waited for
        nothing."""
        longer = self.requests - math.ceil(share * self.requests)
        ordered = sorted(self.waits, reverse=True)
        return ordered[longer] if longer < len(ordered) else 0.0

    def figures(self) -> dict[str, float]:
        counted = {name: value for name, value in asdict(self).items() if name not in _UNTOLD}
        return {
            **counted,
            "hit_rate": self.hit_rate,
            "byte_hit_rate": self.byte_hit_rate,
            "longest_wait": self.longest_wait,
            "wait_p999": self.quantile(0.999),
        }
