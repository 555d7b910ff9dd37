"""The lease that decides which Controller acts.

The end of a lease is kept as wall-clock time, because it must outlive this process, which a
monotonic clock does not. Clocks can be set. Setting one back lengthens a lease, to its ttl from
then at most. Setting one forward ends it early: two Controllers may then act until the first learns
of the newer epoch, which the Routers already follow.
"""

from dataclasses import dataclass

from services.registry.core.errors import LeaseHeld

Followers = tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Lease:
    """The controller lease. `expires_us` counts from 1970; before the first lease, `epoch` is 0."""

    epoch: int = 0
    holder: str = ""
    incarnation: str = ""
    ttl_us: int = 0
    expires_us: int = 0
    #: The Routers that may send by a table of the holder's, or of one before it. None if not all of
    #: them are known.
    followers: Followers = ()

    def remaining_us(self, now_us: int) -> int:
        return max(0, min(self.expires_us - now_us, self.ttl_us))


def held(
    lease: Lease,
    holder: str,
    incarnation: str,
    ttl_us: int,
    now_us: int,
    followers: Followers = None,
) -> Lease:
    """Return the lease after `holder` asked for it. Raises LeaseHeld, with the time to wait.

    A holder that names no `followers` does not know them all. One that has just taken over keeps
    those of its predecessor, which are complete until the predecessor's lease runs out.
    """
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
        followers=_inherited(lease, incarnation, remaining_us) if followers is None else followers,
    )


def _inherited(lease: Lease, incarnation: str, remaining_us: int) -> Followers:
    """Return the followers that a new incarnation takes over, or None if it does not know them."""
    if not lease.epoch:
        return ()
    return lease.followers if remaining_us and incarnation != lease.incarnation else None
