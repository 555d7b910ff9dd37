"""The limits: the numbers that decide."""

from dataclasses import dataclass

from services.controller.core.entities import UnitSpec


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers that decide, with their units.

    Memory:
    unknown_share      share of a budget reserved for a unit of unknown size
    growth             factor by which a first residence is expected to outgrow its load
    margin             factor over a learned size, for what measuring misses
    leak_share         share of a budget that a server may hold beyond what its models take, before
                       it is drained and restarted; `leak_bytes` at least

    Eviction:
    policy             "lru" or "gdsf" (`ranking`)
    half_life_seconds  after which a use counts half, whether the unit was resident or not
    idle_ttl_seconds   a replica that was not used for so long is evicted; 0 for never
    headroom_idle_seconds  what was used within them is not evicted for the soft limit

    Loads:
    loads_per_server, loads_per_host  at the same time
    slow_load_seconds  a load that takes longer, and far longer than it is known to, is overdue:
                       others no longer wait for it
    aging_seconds      a step of priority counts like having waited so much longer, and so do four
                       times as many waiters for a second of loading
    claim_seconds      a want that has waited so long for room has a server kept for it
    backoff_seconds    until a failed load is tried again; doubles with each failure
    max_backoff_seconds
    server_patience_seconds  how long requests wait for a server when none is healthy
    answer_margin_seconds    a waiter is refused this long before its deadline, so that it hears why

    Routers:
    use_lease_seconds  how long a replica waits for the request it was made resident for
    router_seconds     a Router that has not been heard from for so long is dropped

    Copies:
    max_copies         replicas of one unit at most
    copy_in_flight     requests in flight per replica, on average, that call for another copy
    copy_queue_seconds mean time in the server's queue that calls for one
    copy_up_seconds    how long either has to last
    copy_down_seconds  a copy leaves when, for so long, the others would have had half of that

    Crashes:
    suspect_seconds    crashes within them count together against a unit
    set_aside_seconds  how long a unit is then not tried; doubles like a back-off

    Prediction:
    predict            whether models are loaded ahead of when they are expected
    predict_seconds    how far ahead
    """

    unknown_share: float = 0.25
    growth: float = 1.34
    margin: float = 1.05
    leak_share: float = 0.2
    leak_bytes: int = 256 << 20

    policy: str = "lru"
    half_life_seconds: float = 7 * 86400.0
    idle_ttl_seconds: float = 0.0
    headroom_idle_seconds: float = 30.0

    loads_per_server: int = 2
    loads_per_host: int = 4
    slow_load_seconds: float = 5.0
    aging_seconds: float = 10.0
    claim_seconds: float = 2.0
    backoff_seconds: float = 5.0
    max_backoff_seconds: float = 300.0
    server_patience_seconds: float = 15.0
    answer_margin_seconds: float = 0.02

    use_lease_seconds: float = 3.0
    router_seconds: float = 5.0

    max_copies: int = 4
    copy_in_flight: float = 4.0
    copy_queue_seconds: float = 0.1
    copy_up_seconds: float = 3.0
    copy_down_seconds: float = 60.0

    suspect_seconds: float = 60.0
    set_aside_seconds: float = 60.0

    predict: bool = False
    predict_seconds: float = 120.0

    def most_copies(self, spec: UnitSpec) -> int:
        """The number of replicas that `spec` may have."""
        return self.max_copies if spec.max_copies is None else spec.max_copies

    def idle_ttl(self, spec: UnitSpec) -> float:
        """Seconds without use after which `spec` leaves; 0 for never."""
        return self.idle_ttl_seconds if spec.idle_ttl is None else spec.idle_ttl
