"""A recorded trace, and the servers that it is played on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.simulator import files, journal, requests
from services.simulator.costs import GIB, Costs, generated
from services.simulator.runs import Case
from services.simulator.world import Hardware

ROOM: Final = 1 / 3  # of all models' bytes, where no budget is given
WARMUP: Final = 0.1  # of the requests fill the servers and are not counted


def case(
    path: Path,
    costs: Path | None,
    servers: int,
    budget: int | None,
    *,
    warmup: float = WARMUP,
    seed: int = 0,
) -> Case:
    """Read a trace: lines of `time,model`, or events of the Controller's journal.

    `costs`: lines of `model,bytes,load_seconds`. Without them an access log's models get costs
    drawn with `seed`. `budget`: bytes for models on each server; None for `ROOM`. Raises
    Unreadable, OSError, ValueError.
    """
    if journal.is_journal(path):
        found, table = journal.read(path)
        if costs is not None:
            table = files.costs(costs, found.names)
    else:
        found = files.trace(path)
        table = costs_of(costs, found.names, seed)
    count = len(found.requests.times)
    return Case(
        path.name,
        lambda: requests.chunks(found.requests),
        count,
        warm(warmup, count),
        hardware(servers, budget, table),
        table,
    )


def costs_of(path: Path | None, names: Sequence[str], seed: int) -> Costs:
    """The costs in a file, in the order of `names`; drawn at random where there is no file."""
    return files.costs(path, names) if path is not None else generated(len(names), seed, names)


def hardware(servers: int, budget: int | None, table: Costs) -> Hardware:
    """Servers that can hold each of the models. Raises ValueError where one does not fit."""
    largest = int(table.bytes.max())
    budget = budget or max(largest, round(ROOM * int(table.bytes.sum()) / servers))
    if largest > budget:
        name = table.names[int(table.bytes.argmax())]
        raise ValueError(f"{name} has {largest} bytes, a server {budget}: raise --budget")
    return Hardware(servers, budget)


def warm(share: float, count: int) -> int:
    """How many of `count` requests are not counted."""
    return min(count - 1, int(share * count))


def about(case: Case) -> dict[str, str]:
    """What is run on what, for people."""
    table, hardware = case.costs, case.hardware
    total = int(table.bytes.sum())
    share = min(1.0, hardware.servers * hardware.budget / total)
    return {
        "fleet": f"{hardware.servers} servers of {hardware.budget / GIB:.1f} GiB: {share:.0%} of "
        f"{len(table.names)} models' {total / GIB:.0f} GiB",
        "trace": f"{case.requests} requests; the first {case.warm} are not counted",
    }
