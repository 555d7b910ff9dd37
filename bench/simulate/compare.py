"""One trace under every policy."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from bench.simulate import peers
from services.simulator.requests import Requests, whole
from services.simulator.runs import Case, Row, Speed, Step, engine

__all__ = ["BOUND", "PEERS", "Case", "Row", "Speed", "Step", "engine", "pools"]

BOUND: Final = "bound"
PEERS: Final = (*peers.POLICIES, BOUND)


def pools(case: Case, names: Sequence[str], step: Step) -> Iterator[Row]:
    """Run peers, each in one pool as large as the fleet."""
    requests, warm = whole(case.trace()), case.warm
    if case.resident:
        requests = _after(case.resident[::-1], requests)
        warm += len(case.resident)
    budget = case.hardware.servers * case.hardware.budget
    for name in names:
        if name == BOUND:
            yield Row(case.name, name, peers.bound(requests, case.costs, budget, warm))
        else:
            policy = peers.POLICIES[name](requests, case.costs)
            tally = peers.pooled(policy, requests, case.costs, budget, warm)
            yield Row(case.name, f"pool {name}", tally)
        step(case.requests)


def _after(models: Sequence[int], requests: Requests) -> Requests:
    """The trace after one request for each of `models`, long ago."""
    first = np.full(len(models), -1e9)
    return Requests(
        np.concatenate([first, requests.times]),
        np.concatenate([np.array(models, np.int64), requests.models]),
    )
