"""What each tenant may have: a rate, and a number of requests at the same time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.router.core.admission.priority import Priority, priority_of
from services.router.core.admission.rate import Bucket, full, take
from services.router.core.errors import RateLimited, TenantLimited

ANYBODY: Final = "*"  # stands for every tenant without limits of its own
COLD: Final = 1000
MANY: Final = 10_000  # tenants, before those that say nothing are forgotten
LABELS: Final = 100
OTHERS: Final = "(others)"
RETRY_SECONDS: Final = 0.5  # after which one of a tenant's requests may have ended


@dataclass(frozen=True, slots=True)
class TenantLimit:
    """None: as many as come. `rate`: requests a second; `burst`: at once, after a pause, by default
    those of a second. `in_flight`: at the same time, wherever they wait. `cold`: that wait until
    their model is resident. `priority`: the most urgent class that it may use."""

    rate: float | None = None
    burst: float | None = None
    in_flight: int | None = None
    cold: int | None = COLD
    priority: Priority = Priority.HIGH


@dataclass(slots=True)
class Tenant:
    """Its requests now. `label`: its name in metrics. `admitted`: requests so far, by class; the
    tenants of one label have one count together. `usual`: the class of a request that does not say
    how urgent it is."""

    name: str
    label: str
    limit: TenantLimit
    usual: Priority
    admitted: list[int] = field(default_factory=lambda: [0] * len(Priority))
    bucket: Bucket | None = None
    in_flight: int = 0
    cold: int = 0


class Tenants:
    """`workers`: Routers that share the limits evenly; no share is below 1. `admitted`: requests
    by the tenants' labels and class."""

    def __init__(self, limits: Mapping[str, TenantLimit]) -> None:
        self.workers = 1
        self._limits = limits
        self._anybody = limits.get(ANYBODY, TenantLimit())
        self._tenants: dict[str, Tenant] = {}
        self._many = MANY
        self.admitted: dict[str, list[int]] = {}

    def tenant(self, name: str, now: float) -> Tenant:
        known = self._tenants.get(name)
        if known is None:
            if len(self._tenants) >= self._many:
                self._forget(now)
            label = self._label(name)
            count = self.admitted.setdefault(label, [0] * len(Priority))
            limit = self._limits.get(name, self._anybody)
            usual = priority_of(None, 0, limit.priority)
            known = self._tenants[name] = Tenant(name, label, limit, usual, count)
        return known

    def enter(self, tenant: Tenant, now: float, *, cold: bool) -> None:
        """One of its requests begins, until `leave`. Raises RateLimited, TenantLimited."""
        limit = tenant.limit
        if limit.in_flight is not None:
            self._check(tenant, tenant.in_flight, limit.in_flight, "in flight")
        if cold and limit.cold is not None:
            self._check(tenant, tenant.cold, limit.cold, "waiting until a model is resident")
        if limit.rate is not None:
            self._spend(tenant, limit.rate, now)
        tenant.in_flight += 1
        if cold:
            tenant.cold += 1

    def follow(self, tenant: Tenant, *, cold: bool) -> None:
        """As `enter`, for one that no limit may stop."""
        tenant.in_flight += 1
        if cold:
            tenant.cold += 1

    def leave(self, tenant: Tenant, *, cold: bool) -> None:
        """`cold`: as it was given to `enter`."""
        tenant.in_flight -= 1
        if cold:
            tenant.cold -= 1

    def _label(self, name: str) -> str:
        """Metrics tell the first tenants apart, and those that the settings name."""
        if name in self.admitted or name in self._limits or len(self.admitted) < LABELS:
            return name
        return OTHERS

    def _check(self, tenant: Tenant, has: int, limit: int, what: str) -> None:
        may = max(1, limit // self.workers)
        if has >= may:
            raise TenantLimited(
                tenant=tenant.name, number=has, what=what, limit=may, retry_after=RETRY_SECONDS
            )

    def _spend(self, tenant: Tenant, rate: float, now: float) -> None:
        share, capacity = self._shares(tenant.limit, rate)
        bucket = tenant.bucket or full(capacity, now)
        tenant.bucket, wait = take(bucket, share, capacity, now)
        if wait:
            raise RateLimited(
                tenant=tenant.name,
                rate=f"{share:g}",
                burst=f"{capacity:g}",
                retry_after=wait,
            )

    def _shares(self, limit: TenantLimit, rate: float) -> tuple[float, float]:
        """Rate and burst of this worker."""
        burst = rate if limit.burst is None else limit.burst
        return rate / self.workers, max(1.0, burst / self.workers)

    def _forget(self, now: float) -> None:
        """Those that are as if they had never been here."""
        self._tenants = {
            name: tenant
            for name, tenant in self._tenants.items()
            if tenant.in_flight or not self._is_full(tenant, now)
        }
        self._many = max(MANY, 2 * len(self._tenants))

    def _is_full(self, tenant: Tenant, now: float) -> bool:
        rate = tenant.limit.rate
        if tenant.bucket is None or rate is None:
            return True
        share, capacity = self._shares(tenant.limit, rate)
        return tenant.bucket.filled(share, capacity, now) >= capacity
