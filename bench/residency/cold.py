"""First answers of cold models: through Shoal, and by a client that loads on bare Triton itself."""

import contextlib
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from bench.load import Failed
from bench.residency.bare import Bare, bare_triton
from bench.residency.models import Model, write_repository
from bench.residency.report import Table
from bench.residency.shoal import Happened, Shoal, running

MODELS: Final = tuple(Model(f"cold_{number}", 100 + number) for number in range(6))
_WITHIN: Final = 30.0  # seconds until head-room must be there again
_POLL: Final = 0.02


class Case(NamedTuple):
    """`limit`: ms that Shoal may take beyond bare Triton, at the median. `keeps`: how many models
    are there between two pairs. `evicts`: whether a request waits until one of them is gone. `mib`:
    of each model, beside some 30 that Python takes. `arguments`, `variables`: what the stack is
    started with."""

    name: str
    title: str
    limit: float
    keeps: int
    evicts: bool = False
    mib: int = 0
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}


CASES: Final = (
    Case("free", "free room", 15.0, 0),
    Case("evict", "an eviction", 25.0, 3, evicts=True, arguments=("--max-models=3",)),
    Case(
        "soft",
        "soft-limit head-room",
        15.0,
        2,
        # Two models of about 70 MiB are below the soft limit, three are not, and four fit.
        mib=40,
        arguments=("--memory-budget=320MiB",),
        variables={"SHOAL_CONTROLLER_SOFT_LIMIT": "0.53", "SHOAL_CONTROLLER_HEADROOM_IDLE": "0"},
    ),
)


class Pair(NamedTuple):
    """Milliseconds of both sides, and of their parts, in order. `first`: who went first."""

    case: str
    number: int
    first: str
    shoal: float
    bare: float
    shoal_parts: dict[str, float]
    bare_parts: dict[str, float]

    @property
    def beyond(self) -> float:
        return self.shoal - self.bare


def measure(case: Case, pairs: int) -> Iterator[Pair]:
    """`pairs` cold answers of each side, one after the other, in turns. Raises Failed."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
        for name in ("shoal", "bare"):
            write_repository(folder / name, [model._replace(mib=case.mib) for model in MODELS])
        direct = stack.enter_context(bare_triton(folder / "bare"))
        shoal = stack.enter_context(running(folder / "shoal", *case.arguments, **case.variables))
        _warm_up(case, shoal, direct)
        turns = itertools.cycle(MODELS)
        for number in range(1, pairs + 1):
            model = next(turns)
            first = "shoal" if number % 2 else "bare"
            yield _pair(case, number, first, model, shoal, direct)
            _restore(case, shoal, direct)


def _warm_up(case: Case, shoal: Shoal, direct: Bare) -> None:
    """Every model on both sides: sizes are learned, caches written, files read. Twice, since a
    size is known only after a whole residence."""
    for _ in range(2):
        for model in MODELS:
            shoal.infer(model)
            if not case.evicts:
                _settled(case, shoal)
    for model in MODELS:
        direct.load(model)
        direct.infer(model)
    _restore(case, shoal, direct)


def _restore(case: Case, shoal: Shoal, direct: Bare) -> None:
    """Both sides hold the same models, as many as the case keeps."""
    present = _settled(case, shoal)
    for model in MODELS:
        if model.name in direct.present() - present:
            direct.unload(model)
    if present != (found := direct.present()):
        raise Failed(f"Shoal holds {sorted(present)} and bare Triton {sorted(found)}")


def _settled(case: Case, shoal: Shoal) -> set[str]:
    """What Shoal holds once that is no more than the case keeps."""
    if not case.keeps:
        for model in MODELS:
            if model.name in shoal.present():
                shoal.evict(model)
    deadline = time.monotonic() + _WITHIN
    while len(present := shoal.present()) > case.keeps:
        if time.monotonic() > deadline:
            raise Failed(f"Shoal keeps {sorted(present)}, not {case.keeps} models")
        time.sleep(_POLL)
    return present


def _pair(case: Case, number: int, first: str, model: Model, shoal: Shoal, direct: Bare) -> Pair:
    victim = _oldest(model, direct) if case.evicts else None
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "shoal": lambda: _through_shoal(model, shoal),
        "bare": lambda: _by_itself(model, victim, direct),
    }
    order = ("shoal", "bare") if first == "shoal" else ("bare", "shoal")
    parts = {side: sides[side]() for side in order}
    shoal_ms, bare_ms = (sum(parts[side].values()) for side in ("shoal", "bare"))
    return Pair(case.name, number, first, shoal_ms, bare_ms, parts["shoal"], parts["bare"])


def _oldest(model: Model, direct: Bare) -> Model:
    """Models are asked for in turn, so the one that follows in the circle is the oldest here."""
    present = direct.present()
    start = MODELS.index(model)
    circle = (*MODELS[start + 1 :], *MODELS[:start])
    return next(one for one in circle if one.name in present)


def _through_shoal(model: Model, shoal: Shoal) -> dict[str, float]:
    at, began = time.time(), time.perf_counter()
    shoal.infer(model)
    took = time.perf_counter() - began
    return parts_of(shoal.happened(at), model.name, at, at + took)


def parts_of(events: list[Happened], model: str, at: float, until: float) -> dict[str, float]:
    """Milliseconds from `at` to `until` by what happened in between, at the Controller. Evictions
    that begin after the load did are not waited for, and are left out."""
    marks = {"asked": at}
    for event in events:
        if event.model == model and event.kind in ("QUEUED", "LOADING", "READY"):
            marks[event.kind.lower()] = event.at
        elif event.kind in ("EVICTING", "UNLOADING", "UNLOADED") and "loading" not in marks:
            marks.setdefault(event.kind.lower(), event.at)
    ordered = sorted((when, name) for name, when in marks.items() if when <= until)
    ordered.append((until, "answered"))
    return {
        f"{name} → {after}": (then - when) * 1e3
        for (when, name), (then, after) in itertools.pairwise(ordered)
    }


def _by_itself(model: Model, victim: Model | None, direct: Bare) -> dict[str, float]:
    found = {}
    if victim is not None:
        found["unload"] = _timed(lambda: direct.unload(victim))
    found["load"] = _timed(lambda: direct.load(model))
    found["infer"] = _timed(lambda: direct.infer(model))
    return found


def _timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3


class Summary(NamedTuple):
    """Milliseconds at the median. `beyond`: of the differences within a pair; `low`, `high`: their
    median lies between these with 95 % confidence, by the order statistics."""

    case: Case
    pairs: int
    shoal: float
    bare: float
    beyond: float
    low: float
    high: float
    shoal_parts: dict[str, float]
    bare_parts: dict[str, float]

    @property
    def holds(self) -> bool:
        return self.beyond <= self.case.limit


def summary(case: Case, pairs: Sequence[Pair]) -> Summary:
    ordered = sorted(pair.beyond for pair in pairs)
    middle, reach = (len(ordered) - 1) / 2, 0.98 * len(ordered) ** 0.5
    return Summary(
        case,
        len(pairs),
        median(pair.shoal for pair in pairs),
        median(pair.bare for pair in pairs),
        median(ordered),
        ordered[max(0, math.floor(middle - reach))],
        ordered[min(len(ordered) - 1, math.ceil(middle + reach))],
        _parts([pair.shoal_parts for pair in pairs]),
        _parts([pair.bare_parts for pair in pairs]),
    )


def _parts(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each part that most pairs have. Their order can differ where two come together."""
    names = dict.fromkeys(name for parts in found for name in parts)
    values = {name: [parts[name] for parts in found if name in parts] for name in names}
    return {name: median(all_) for name, all_ in values.items() if len(all_) * 2 > len(found)}


def tables(found: Sequence[Summary]) -> list[Table]:
    rows = [
        [
            one.case.title,
            str(one.pairs),
            f"{one.shoal:.1f}",
            f"{one.bare:.1f}",
            f"{one.beyond:+.1f}",
            f"{one.low:+.1f} to {one.high:+.1f}",
            f"{one.case.limit:.0f}",
            "yes" if one.holds else "NO",
        ]
        for one in found
    ]
    columns = ("case", "pairs", "Shoal ms", "bare ms", "beyond", "95 %", "at most", "holds")
    parts = [
        [one.case.title, side, part, f"{value:.1f}"]
        for one in found
        for side, parts in (("Shoal", one.shoal_parts), ("bare", one.bare_parts))
        for part, value in parts.items()
    ]
    return [
        Table("First answer of a cold model", columns, rows),
        Table("Where the time goes, ms at the median", ("case", "side", "part", "ms"), parts),
    ]
