"""One trace on two real Tritons and in the simulator, with each eviction policy.

The models differ in size and in how long they take to load, both known only by measuring, and are
asked for by Zipf's law, whether or not earlier requests have been answered. Then the simulator
plays the same trace, with the sizes and times that were measured.
"""

import concurrent.futures
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from bench.load import Failed
from bench.residency import shoal
from bench.residency.models import Model, write_repository
from bench.residency.report import Table
from bench.residency.shoal import Happened, Shoal
from bench.simulate.traces import Shape, chunks, whole, zipf
from services.simulator.costs import MIB, Costs
from services.simulator.requests import Requests
from services.simulator.runs import Case, engine
from services.simulator.world import ENGINE_POLICIES, Hardware

SERVERS: Final = 2
BUDGET_MIB: Final = 512  # of each server: about a third of what all models take
SHAPE: Final = Shape(models=30, requests=400, rate=2.0, period=200.0, alpha=0.9, seed=5)
WARM: Final = 0.2  # of the requests are not counted
OTHERS: Final = 20  # other traces of the same kind, in the simulator: how much is chance
COLD_SECONDS: Final = 0.15  # an answer that takes longer has waited for a load
ASKING: Final = 64  # requests in flight, at most
KNOWN_WITHIN: Final = 120.0  # seconds until every size is known
MARGIN: Final = 1.05  # over a learned size, as the engine reserves it
# The simulator has no soft limit and no host that servers share, and nothing calls for copies.
VARIABLES: Final = {
    "SHOAL_CONTROLLER_SOFT_LIMIT": "1",
    "SHOAL_CONTROLLER_LOADS_PER_HOST": "4",
    "SHOAL_CONTROLLER_MAX_COPIES": "1",
}


class Outcome(NamedTuple):
    """What came of the counted requests; `real` says where. `waited`, `longest`: seconds."""

    policy: str
    real: bool
    requests: int
    hits: int
    loads: int
    waited: float
    longest: float
    #: Of the trace.
    seed: int = SHAPE.seed


def models(count: int, seed: int) -> list[Model]:
    random = np.random.default_rng([seed, *b"models"])
    sizes = random.lognormal(3.6, 0.8, count).clip(4, 200)
    pauses = random.uniform(0.2, 3.0, count)
    return [
        Model(f"zipf_{number:02}", 2000 + number, int(size), round(float(pause), 1))
        for number, (size, pause) in enumerate(zip(sizes, pauses, strict=True))
    ]


def measure(shape: Shape = SHAPE) -> Iterator[Outcome]:
    """Run the trace with each policy, for real and then in the simulator."""
    made, trace = models(shape.models, shape.seed), whole(zipf(shape))
    measured: dict[str, Costs] = {}
    for policy in ENGINE_POLICIES:
        with tempfile.TemporaryDirectory() as folder:
            write_repository(Path(folder), made)
            variables = {**VARIABLES, "SHOAL_CONTROLLER_POLICY": policy}
            limits = (f"--servers={SERVERS}", f"--memory-budget={BUDGET_MIB}MiB")
            with shoal.running(Path(folder), *limits, **variables) as running:
                _learn(running, made)
                began, waits = _play(running, made, trace)
                events = running.happened(0.0, most=10_000)
                measured[policy] = _costs(running, made, events)
        counted = _warm(trace)
        since = began + float(trace.times[counted])
        loads = sum(event.kind == "LOADING" and event.at >= since for event in events)
        yield _outcome(policy, waits[counted:], loads)
        yield simulated(policy, trace, measured[policy])
    for seed in range(100, 100 + OTHERS):
        other = whole(zipf(replace(shape, seed=seed)))
        for policy, table in measured.items():
            yield simulated(policy, other, table)._replace(seed=seed)


def simulated(policy: str, trace: Requests, table: Costs) -> Outcome:
    case = Case(
        "zipf",
        lambda: chunks(trace),
        len(trace.times),
        _warm(trace),
        Hardware(SERVERS, BUDGET_MIB * MIB),
        table,
    )
    tally = engine(case, policy).tally
    return Outcome(
        policy,
        False,
        tally.requests,
        tally.hits,
        tally.cold_starts,
        tally.waited_seconds,
        tally.longest_wait,
    )


def _warm(trace: Requests) -> int:
    return int(WARM * len(trace.times))


def _outcome(policy: str, waits: Sequence[float], loads: int) -> Outcome:
    cold = [seconds for seconds in waits if seconds > COLD_SECONDS]
    hits = len(waits) - len(cold)
    return Outcome(policy, True, len(waits), hits, loads, sum(cold), max(cold, default=0.0))


def _learn(running: Shoal, made: Sequence[Model]) -> None:
    """Ask for every model until all sizes and load times are known."""
    deadline = time.monotonic() + KNOWN_WITHIN
    with concurrent.futures.ThreadPoolExecutor(SERVERS) as pool:
        while missing := [model for model in made if model.name not in running.footprints()]:
            if time.monotonic() > deadline:
                raise Failed(f"nobody learned what {missing[0].name} takes")
            list(pool.map(running.infer, missing))


def _play(running: Shoal, made: Sequence[Model], trace: Requests) -> tuple[float, list[float]]:
    """Ask by the trace. Returns when it began (seconds of the epoch), and the seconds that each
    answer took."""

    def ask(model: Model, due: float) -> float:
        running.infer(model)
        return time.monotonic() - due

    with concurrent.futures.ThreadPoolExecutor(ASKING) as pool:
        epoch, began = time.time(), time.monotonic()
        asked = []
        for at, model in zip(trace.times.tolist(), trace.models.tolist(), strict=True):
            time.sleep(max(0.0, began + at - time.monotonic()))
            asked.append(pool.submit(ask, made[model], began + at))
        return epoch, [one.result() for one in asked]


def _costs(running: Shoal, made: Sequence[Model], events: Sequence[Happened]) -> Costs:
    """Sizes as learned, and the mean time of the loads and unloads that were seen."""
    loads = spans(events, "LOADING", "READY")
    unloads = spans(events, "UNLOADING", "UNLOADED")
    known = running.footprints()
    usual = statistics.mean(seconds for found in unloads.values() for seconds in found)
    sizes = [sum(known[model.name].memory.values()) * MARGIN for model in made]
    return Costs(
        [model.name for model in made],
        np.array(sizes).astype(np.int64),
        np.array(
            [
                statistics.mean(loads[model.name])
                if model.name in loads
                else known[model.name].load_duration.ToTimedelta().total_seconds()
                for model in made
            ]
        ),
        np.array([statistics.mean(unloads.get(model.name, [usual])) for model in made]),
    )


def spans(events: Sequence[Happened], first: str, last: str) -> dict[str, list[float]]:
    """The seconds from each event of kind `first` to the next of kind `last`, by model."""
    found: dict[str, list[float]] = defaultdict(list)
    began: dict[str, float] = {}
    for event in events:
        if event.kind == first:
            began[event.model] = event.at
        elif event.kind == last and event.model in began:
            found[event.model].append(event.at - began.pop(event.model))
    return found


def tables(found: Sequence[Outcome]) -> list[Table]:
    columns = ("policy", "where", "requests", "hits", "loads", "waited s", "longest s")
    rows = [
        [
            one.policy,
            "two Tritons" if one.real else "simulator",
            f"{one.requests}",
            f"{one.hits / one.requests:.1%}",
            f"{one.loads}",
            f"{one.waited:.0f}",
            f"{one.longest:.1f}",
        ]
        for one in found
        if one.seed == SHAPE.seed
    ]
    return [Table("One trace with each policy", columns, rows), _ratios(found)]


def _ratios(found: Sequence[Outcome]) -> Table:
    """Each policy's seconds by those of the first, on the same trace."""
    first, *others = ENGINE_POLICIES
    waited = {(one.policy, one.real, one.seed): one.waited for one in found}
    seeds = sorted({one.seed for one in found} - {SHAPE.seed})
    rows = []
    for policy in others:

        def ratio(real: bool, seed: int, policy: str = policy) -> float:
            return waited[policy, real, seed] / waited[first, real, seed]

        name = f"{policy} by {first}"
        rows.append([name, "two Tritons", f"{ratio(True, SHAPE.seed):.2f}"])
        rows.append([name, "simulator", f"{ratio(False, SHAPE.seed):.2f}"])
        if seeds:
            spread = [ratio(False, seed) for seed in seeds]
            where = f"simulator, {len(seeds)} other traces"
            rows.append([name, where, f"{min(spread):.2f} to {max(spread):.2f}"])
    return Table("Seconds waited", ("ratio", "where", "value"), rows)
