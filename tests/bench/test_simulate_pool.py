"""The engine on one large server, where there is nothing to place, loads as much as one pool."""

import pytest

from bench.simulate import peers
from bench.simulate.traces import GENERATORS, Shape, whole
from services.simulator import costs
from services.simulator.requests import chunks
from services.simulator.runs import Case, engine
from services.simulator.world import Hardware

SHAPE = Shape(models=200, requests=3_000, rate=0.3, period=2_500.0, alpha=1.0, seed=3)
WARM = 300
MARGIN = 0.02


@pytest.mark.parametrize("trace", GENERATORS)
def test_one_large_server_loads_as_much_as_one_pool(trace: str) -> None:
    requests = whole(GENERATORS[trace](SHAPE))
    table = costs.generated(SHAPE.models, SHAPE.seed)
    budget = int(table.bytes.sum()) // 3
    case = Case(trace, lambda: chunks(requests), SHAPE.requests, WARM, Hardware(1, budget), table)
    server = engine(case, "lru").tally
    pool = peers.pooled(peers.Lru(), requests, table, budget, WARM)
    assert server.load_seconds == pytest.approx(pool.load_seconds, rel=MARGIN)
    assert server.hit_rate == pytest.approx(pool.hit_rate, rel=MARGIN)
