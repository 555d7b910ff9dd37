"""Figures in words, for the reasons that people read."""

from collections.abc import Mapping

from services.controller.core import memory


def of_replica(numbers: Mapping[str, float]) -> str:
    """What the eviction policy weighs (`victims.numbers`): `used 3 times lately, idle 40 min, 9 s
    to load, 4.10 GiB`."""
    uses = round(numbers["uses"])
    times = "once" if uses == 1 else "twice" if uses == 2 else f"{uses} times"
    used = f"used {times} lately" if uses else "hardly used lately"
    idle, load = duration(numbers["idle_seconds"]), duration(numbers["reload_seconds"])
    return f"{used}, idle {idle}, {load} to load, {memory.size(int(numbers['bytes']))}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: `0.4 s`, `40 s`, `40 min`, `3 h`, `2 d`."""
    for most, unit, size in ((90, "s", 1), (90 * 60, "min", 60), (36 * 3600, "h", 3600)):
        if seconds < most:
            return f"{_short(seconds / size)} {unit}"
    return f"{_short(seconds / 86400)} d"


def _short(amount: float) -> str:
    return f"{amount:.0f}" if amount >= 10 else f"{amount:.1f}".removesuffix(".0")
