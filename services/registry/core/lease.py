"""The lease that decides which Controller acts.

The end of a lease is kept as wall-clock time, because it must outlive this process, which a
monotonic clock does not. Clocks can be set. Setting one back lengthens a lease, to its ttl from
then at most. Setting one forward ends it early: two Controllers may then act until the first learns
of the newer epoch, which the Routers already follow.
"""

from dataclasses import dataclass

from services.registry.core.errors import LeaseHeld


@dataclass(frozen=True, slots=True)
class Lease:
    """The controller lease. `expires_us` counts from 1970; before the first lease, `epoch` is 0."""

    epoch: int = 0
    holder: str = ""
    incarnation: str = ""
    ttl_us: int = 0
    expires_us: int = 0

    def remaining_us(self, now_us: int) -> int:
        return max(0, min(self.expires_us - now_us, self.ttl_us))


def held(lease: Lease, holder: str, incarnation: str, ttl_us: int, now_us: int) -> Lease:
    """Return the lease after `holder` asked for it. Raises LeaseHeld, with the time to wait."""
    remaining_us = lease.remaining_us(now_us)
    if remaining_us and holder != lease.holder:
        seconds = remaining_us / 1e6
        raise LeaseHeld(
            holder=lease.holder, remaining_seconds=f"{seconds:.1f}", retry_after=seconds
        )
    same = remaining_us > 0 and incarnation == lease.incarnation
    return Lease(
        epoch=lease.epoch if same else lease.epoch + 1,
        holder=holder,
        incarnation=incarnation,
        ttl_us=ttl_us,
        expires_us=now_us + ttl_us,
    )
