"""The limits of tenants: on the rate of their requests, and on how many are under way at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.router.core.admission.priority import Priority, priority_of
from services.router.core.admission.rate import Bucket, full, take
from services.router.core.errors import RateLimited, TenantLimited

ANYBODY: Final = "*"  # stands for every tenant without limits of its own
COLD: Final = 1000
MANY: Final = 10_000  # tenants, beyond which those without a history are forgotten
LABELS: Final = 100
OTHERS: Final = "(others)"
RETRY_SECONDS: Final = 0.5  # in which one of a tenant's requests may end


@dataclass(frozen=True, slots=True)
class TenantLimit:
    """The limits of one tenant. None means no limit."""

    #: Requests a second.
    rate: float | None = None
    #: Requests at once after a pause; by default, those of one second.
    burst: float | None = None
    #: Requests at a time, wherever they wait.
    in_flight: int | None = None
    #: Requests at a time that wait for their model to become resident.
    cold: int | None = COLD
    #: The most urgent class that the tenant may use.
    priority: Priority = Priority.HIGH


@dataclass(slots=True)
class Tenant:
    """A tenant and its requests."""

    name: str
    #: The tenant's name in metrics.
    label: str
    limit: TenantLimit
    #: The class of a request that does not say how urgent it is.
    default_priority: Priority
    #: Requests so far by class, counted together for all tenants with the same label.
    admitted: list[int] = field(default_factory=lambda: [0] * len(Priority))
    bucket: Bucket | None = None
    in_flight: int = 0
    cold: int = 0


class Tenants:
    """All tenants that are known."""

    def __init__(self, limits: Mapping[str, TenantLimit]) -> None:
        #: Routers that share the limits evenly. No share is below 1.
        self.workers = 1
        self._limits = limits
        self._anybody = limits.get(ANYBODY, TenantLimit())
        self._tenants: dict[str, Tenant] = {}
        self._many = MANY
        #: Requests by label of the tenant, and by class.
        self.admitted: dict[str, list[int]] = {}

    def tenant(self, name: str, now: float) -> Tenant:
        """Return the tenant of that name, new if it is not known."""
        known = self._tenants.get(name)
        if known is None:
            if len(self._tenants) >= self._many:
                self._forget(now)
            label = self._label(name)
            count = self.admitted.setdefault(label, [0] * len(Priority))
            limit = self._limits.get(name, self._anybody)
            default_priority = priority_of(None, 0, limit.priority)
            known = self._tenants[name] = Tenant(name, label, limit, default_priority, count)
        return known

    def enter(self, tenant: Tenant, now: float, *, cold: bool) -> None:
        """Start a request, which lasts until `leave`. Raises RateLimited, TenantLimited."""
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

    def force(self, tenant: Tenant, *, cold: bool) -> None:
        """Start a request that no limit may stop."""
        tenant.in_flight += 1
        if cold:
            tenant.cold += 1

    def leave(self, tenant: Tenant, *, cold: bool) -> None:
        """End a request. `cold` is what `enter` was given."""
        tenant.in_flight -= 1
        if cold:
            tenant.cold -= 1

    def _label(self, name: str) -> str:
        """Return the name in metrics, which tell apart the first tenants and those named in the
        settings."""
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
        """Return the rate and burst of this worker."""
        burst = rate if limit.burst is None else limit.burst
        return rate / self.workers, max(1.0, burst / self.workers)

    def _forget(self, now: float) -> None:
        """Forget tenants about whom there is nothing to remember."""
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
