"""Whose request it was that crashed a server.

When a server is lost, everything that was in flight there breaks off, most of it innocent. A unit
is suspected when the same request broke off on two servers (it was repeated after the first), or
when it alone was in flight at three crashes: its clients repeat by themselves what may not be
repeated for them.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from services.controller.core.entities import ReplicaKey, Unit

ALONE: Final = 3  # crashes
SAME_CRASH_SECONDS: Final = 2.0  # what breaks on a server within them broke at the same crash


class Break(NamedTuple):
    """A request that broke off: when, where, and where it had broken off before."""

    when: float
    key: ReplicaKey
    earlier: ReplicaKey | None


def culprit(newest: Break) -> str | None:
    """Why the unit of one break is to blame, or None where that is not certain."""
    before = newest.earlier
    if before is None or before.server == newest.key.server:
        return None
    return (
        f"a request of it was in flight when {before.server} crashed, and again when "
        f"{newest.key.server} did"
    )


def lonely(breaks: Iterable[Break]) -> dict[Unit, str]:
    """The units that were alone in flight at `ALONE` crashes or more, with the reason."""
    crashes: list[tuple[float, str, set[Unit]]] = []
    latest: dict[str, int] = {}
    for when, key, _ in sorted(breaks, key=lambda one: (one.when, one.key)):
        index = latest.get(key.server)
        if index is not None and when - crashes[index][0] <= SAME_CRASH_SECONDS:
            crashes[index][2].add(key.unit)
        else:
            latest[key.server] = len(crashes)
            crashes.append((when, key.server, {key.unit}))
    alone: dict[Unit, list[str]] = {}
    for _, server, units in crashes:
        if len(units) == 1:
            alone.setdefault(next(iter(units)), []).append(server)
    return {
        unit: f"only its requests were in flight when servers crashed: {', '.join(servers)}"
        for unit, servers in alone.items()
        if len(servers) >= ALONE
    }
