"""A warm model's latency with and without loads beside it, on bare Triton and through Shoal."""

import contextlib
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from bench.load import Failed
from bench.residency.bare import Bare, bare_triton
from bench.residency.load import ALONE, WARM, Loop
from bench.residency.models import Model, write_repository
from bench.residency.report import Table
from bench.residency.shoal import Shoal, running
from bench.rounds import order

EVERY: Final = 1.6  # seconds from the beginning of a load to that of the next
QUIET, STEADY, HERD = "quiet", "steady", "herd"
TIMES_BARE: Final = 1.2  # Shoal's inflation by bare Triton's, at most
OUTRIGHT: Final = 1.5  # Shoal's inflation, at most
KEPT: Final = 4  # churning models that are resident at a time
HERD_CLIENTS: Final = 8

CHURN: Final = tuple(Model(f"churn_{number}", 100 + number) for number in range(3 * KEPT))


class Sample(NamedTuple):
    """Latencies in µs, `loads` per second. `side`: `bare`, `shoal`, or `shoal` with a bound on the
    loads of a server at a time."""

    round: int
    side: str
    mode: str
    rate: float
    p50: float
    p99: float
    loads: float


class Side(NamedTuple):
    """`turn`: has the next cold model answer, with what that takes."""

    name: str
    loop: Loop
    turn: Callable[[Model], None]
    modes: tuple[str, ...]


def measure(generator: str, rounds: int, seconds: float, bounds: Sequence[int]) -> Iterator[Sample]:
    """All sides and modes there and back, each for about so many seconds. `bounds`: of loads at a
    time, each also under a herd of cold requests. Raises Failed."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
        write_repository(folder / "bare", (WARM, *CHURN))
        write_repository(folder / "shoal", (WARM, *CHURN))
        direct = stack.enter_context(bare_triton(folder / "bare"))
        sides = [_bare_side(direct, generator)]
        for bound in (None, *bounds):
            variables = (
                {}
                if bound is None
                else {
                    "SHOAL_CONTROLLER_LOADS_PER_SERVER": str(bound),
                    "SHOAL_CONTROLLER_LOADS_PER_HOST": str(bound),
                }
            )
            arguments = (f"--max-models={KEPT + 1}",)
            shoal = stack.enter_context(running(folder / "shoal", *arguments, **variables))
            sides.append(_shoal_side(shoal, generator, bound))
        pairs = [(side, mode) for side in sides for mode in side.modes]
        for number in range(1, rounds + 1):
            for index in order([str(at) for at in range(len(pairs))]):
                side, mode = pairs[int(index)]
                yield _sample(number, side, mode, seconds)


def _bare_side(direct: Bare, generator: str) -> Side:
    for model in (WARM, *CHURN):  # all of them once, for the caches
        direct.load(model)
        direct.infer(model)
    for model in CHURN[KEPT:]:
        direct.unload(model)
    resident, coming = [*CHURN[:KEPT]], set[Model]()
    lock, places = threading.Lock(), threading.Semaphore(KEPT)

    def turn(model: Model) -> None:
        with places:
            with lock:
                if model in resident or model in coming:
                    return
                coming.add(model)
                oldest = resident.pop(0)
            direct.unload(oldest)
            direct.load(model)
            direct.infer(model)
            with lock:
                coming.remove(model)
                resident.append(model)

    loop = Loop(generator, direct.address, direct.metrics)
    return Side("bare", loop, turn, (QUIET, STEADY, HERD))


def _shoal_side(shoal: Shoal, generator: str, bound: int | None) -> Side:
    for model in (*CHURN, WARM):
        shoal.infer(model)
    shoal.pin(WARM)  # or a herd of more than there is room for would have it leave, too
    (metrics,) = shoal.stack.announced().endpoints["triton_metrics"].values()
    loop = Loop(generator, shoal.address, metrics)
    if bound is None:
        return Side("shoal", loop, shoal.infer, (QUIET, STEADY, HERD))
    return Side(f"shoal, {bound} at a time", loop, shoal.infer, (QUIET, HERD))


def _sample(number: int, side: Side, mode: str, seconds: float) -> Sample:
    with contextlib.ExitStack() as stack:
        loads: list[float] = []
        if mode == STEADY:
            stack.enter_context(_loading(side.turn, 1, EVERY, loads))
        elif mode == HERD:
            stack.enter_context(_loading(side.turn, HERD_CLIENTS, 0.0, loads))
        sent = side.loop.send(ALONE, seconds)
    rate = len(loads) / sent.seconds
    micro = 1e6
    return Sample(
        number,
        side.name,
        mode,
        sent.calls / sent.seconds,
        sent.p50 * micro,
        sent.p99 * micro,
        rate,
    )


@contextlib.contextmanager
def _loading(
    turn: Callable[[Model], None], clients: int, every: float, done: list[float]
) -> Iterator[None]:
    """Cold requests meanwhile, each for the model that was asked for longest ago."""
    stop = threading.Event()
    models = itertools.cycle(CHURN)
    failures: list[BaseException] = []

    def ask() -> None:
        due = time.monotonic()
        while not stop.is_set() and not failures:
            try:
                turn(next(models))
            except BaseException as error:  # told by the thread that waits
                failures.append(error)
                return
            done.append(time.monotonic())
            due = max(due + every, time.monotonic())
            stop.wait(due - time.monotonic())

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise Failed(f"a load failed: {failures[0]}")


class Inflation(NamedTuple):
    """p99 with loads by p99 without, of the same round: at the median, and from to."""

    side: str
    mode: str
    loads: float
    p99: float
    times: float
    low: float
    high: float


def inflations(samples: Sequence[Sample]) -> list[Inflation]:
    found = []
    kinds = dict.fromkeys((one.side, one.mode) for one in samples if one.mode != QUIET)
    for side, mode in kinds:
        own = [one for one in samples if (one.side, one.mode) == (side, mode)]
        ratios = ratios_of(samples, side, mode)
        found.append(
            Inflation(
                side,
                mode,
                median(one.loads for one in own),
                median(one.p99 for one in own),
                median(ratios),
                min(ratios),
                max(ratios),
            )
        )
    return found


def ratios_of(samples: Sequence[Sample], side: str, mode: str) -> list[float]:
    """The rounds' median p99 in `mode`, by that of the same round without loads."""
    rounds = sorted({one.round for one in samples})
    return [
        _p99(samples, number, side, mode) / _p99(samples, number, side, QUIET) for number in rounds
    ]


def _p99(samples: Sequence[Sample], number: int, side: str, mode: str) -> float:
    return median(
        one.p99 for one in samples if (one.round, one.side, one.mode) == (number, side, mode)
    )


def tables(samples: Sequence[Sample]) -> list[Table]:
    found = inflations(samples)
    kinds = dict.fromkeys((one.side, one.mode) for one in samples)
    rows = []
    for side, mode in kinds:
        own = [one for one in samples if (one.side, one.mode) == (side, mode)]
        more = next((one for one in found if (one.side, one.mode) == (side, mode)), None)
        rows.append(
            [
                side,
                mode,
                f"{median(one.loads for one in own):.2f}",
                f"{median(one.rate for one in own):.0f}",
                f"{median(one.p50 for one in own):.0f}",
                f"{median(one.p99 for one in own):.0f}",
                f"{more.times:.2f}" if more else "",
                f"{more.low:.2f} to {more.high:.2f}" if more else "",
            ]
        )
    columns = ("side", "loads", "loads/s", "req/s", "p50 µs", "p99 µs", "× quiet", "range")
    return [Table("A warm model, 1 in flight", columns, rows), _claims(samples, found)]


def _claims(samples: Sequence[Sample], found: Sequence[Inflation]) -> Table:
    shoal, bare = (ratios_of(samples, side, STEADY) for side in ("shoal", "bare"))
    by_bare = [mine / theirs for mine, theirs in zip(shoal, bare, strict=True)]
    rows = [
        _claim("Shoal's × quiet by bare Triton's, at the same rate of loads", by_bare, TIMES_BARE),
        _claim("Shoal's × quiet, at that rate", shoal, OUTRIGHT),
    ]
    rows += [
        _claim(
            f"{one.side}: × quiet under {HERD_CLIENTS} cold requests at a time",
            ratios_of(samples, one.side, HERD),
            None,  # to compare bounds by
        )
        for one in found
        if one.mode == HERD
    ]
    return Table("p99", ("ratio", "median", "range", "at most", "holds"), rows)


def _claim(text: str, ratios: Sequence[float], limit: float | None) -> list[str]:
    middle = median(ratios)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    told = ["", ""] if limit is None else [f"{limit:g}", "yes" if middle <= limit else "NO"]
    return [text, f"{middle:.2f}", spread, *told]
