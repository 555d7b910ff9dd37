"""The search for the unit whose requests crash servers.

When a server is lost, everything that was in flight there breaks off, most of it innocent. A unit
is to blame when the same request broke off on two servers (it was repeated after the first crash).
Where requests may not be repeated, their clients repeat them by themselves; then a unit is to blame
when it alone was in flight at three crashes. (A slow unit whose requests are repeated is often
alone, too.)
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from services.controller.core.entities import ReplicaKey, Unit

ALONE: Final = 3  # crashes
SAME_CRASH_SECONDS: Final = 2.0  # what breaks on a server within them broke at the same crash


class Break(NamedTuple):
    """A request that broke off: when (in seconds of the engine's clock), where, where it had broken
    off before, and whether it is sent once more."""

    when: float
    key: ReplicaKey
    earlier: ReplicaKey | None
    repeated: bool = False


def culprit(newest: Break) -> str | None:
    """The reason why the unit of a break is to blame, or None where that is not certain."""
    before = newest.earlier
    if before is None or before.server == newest.key.server:
        return None
    return (
        f"one of its requests was in flight when {before.server} crashed, and again when "
        f"{newest.key.server} did"
    )


def lonely(breaks: Iterable[Break]) -> dict[Unit, str]:
    """The units that were alone in flight at `ALONE` crashes or more, with nothing of theirs
    repeated since, each with the reason."""
    crashes: list[tuple[float, str, set[tuple[Unit, bool]]]] = []
    latest: dict[str, int] = {}
    for when, key, _, repeated in sorted(breaks, key=lambda one: (one.when, one.key)):
        index = latest.get(key.server)
        if index is not None and when - crashes[index][0] <= SAME_CRASH_SECONDS:
            crashes[index][2].add((key.unit, repeated))
        else:
            latest[key.server] = len(crashes)
            crashes.append((when, key.server, {(key.unit, repeated)}))
    alone: dict[Unit, list[str]] = {}
    for _, server, broke in crashes:
        if len(broke) == 1:
            ((unit, repeated),) = broke
            if not repeated:
                alone.setdefault(unit, []).append(server)
    return {
        unit: f"only its requests were in flight when servers crashed: {', '.join(servers)}"
        for unit, servers in alone.items()
        if len(servers) >= ALONE
    }
