"""One load or eviction after the other, each followed until the proxy's worker goes by it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import psutil

from bench.cpu import Clock
from bench.lane.proxy import HOLDERS, KINDS, Proxy
from services.router.core.routing.lane import Place
from services.router.core.routing.routes import Target
from services.router.lane.routes import Routes

MIB: Final = 1 << 20
Start = Callable[[Path], AbstractAsyncContextManager[Proxy]]


class Change(NamedTuple):
    """What one change cost: CPU milliseconds of Envoy and of this process, which does what the
    Router would, and milliseconds until Envoy's worker went by it."""

    envoy: float
    router: float
    followed: float


class Cost(NamedTuple):
    """The median change of a proxy with `resident` models. `size`: bytes of all routes; `memory`:
    bytes that Envoy has resident."""

    way: str
    resident: int
    change: Change
    slowest: Change
    size: int
    memory: int


async def measure(way: str, start: Start, envoy: Path, resident: int, changes: int) -> Cost:
    """Evict one of the models and load it again, by turns. Raises Failed."""
    routes = {kind: Routes(kind) for kind in KINDS}
    for number in range(resident):
        _place(routes, number, resident=True)
    async with start(envoy) as proxy:
        size = await _follow(proxy, routes, "0")
        clock, found = Clock(proxy.pid), []
        for revision, (number, stays) in enumerate(_turns(resident, changes), 1):
            before = clock.seconds(), time.process_time(), time.perf_counter()
            _place(routes, number, resident=stays)
            size = await _follow(proxy, routes, f"{revision}")
            after = clock.seconds(), time.process_time(), time.perf_counter()
            found.append(Change(*(1e3 * (b - a) for a, b in zip(before, after, strict=True))))
        memory = psutil.Process(proxy.pid).memory_info().rss
    middle, slowest = (
        Change(*(choose(values) for values in zip(*found, strict=True))) for choose in (median, max)
    )
    return Cost(way, resident, middle, slowest, size, memory)


def _turns(resident: int, changes: int) -> Iterator[tuple[int, bool]]:
    for number in range(changes // 2):
        yield number % resident, False
        yield number % resident, True


def _place(routes: dict[str, Routes], number: int, *, resident: bool) -> None:
    """Give the model a route without a version, and one with the number of its only version."""
    model = f"model_{number:05}"
    servers = HOLDERS[number % len(HOLDERS)]
    target = Target(model, 1)
    places = [(version, Place(target, servers)) for version in ("", "1")]
    for one in routes.values():
        one.update(model, places if resident else ())


async def _follow(proxy: Proxy, routes: dict[str, Routes], revision: str) -> int:
    serialized = {kind: one.serialized(revision) for kind, one in routes.items()}
    await proxy.follow(serialized, revision)
    return sum(map(len, serialized.values()))
