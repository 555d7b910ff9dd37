"""What is counted, the same for every policy."""

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Tally:
    """`hits`: requests for a model that was READY. `cold_starts`: loads that were begun.
    `load_seconds`: of all of those. `waited_seconds`: of all requests that waited, each its own
    wait: whoever comes while a model is loading waits, too. `refused`: got an error instead."""

    requests: int = 0
    hits: int = 0
    bytes_requested: int = 0
    bytes_hit: int = 0
    cold_starts: int = 0
    load_seconds: float = 0.0
    waited_seconds: float = 0.0
    evictions: int = 0
    refused: int = 0

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests if self.requests else 0.0

    @property
    def byte_hit_rate(self) -> float:
        return self.bytes_hit / self.bytes_requested if self.bytes_requested else 0.0

    def figures(self) -> dict[str, float]:
        return {**asdict(self), "hit_rate": self.hit_rate, "byte_hit_rate": self.byte_hit_rate}
