"""The figures for people: tables in the terminal, and a section of bench/RESULTS.md."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from bench.simulate.compare import BOUND, Row
from services.simulator.sheets import Sheet

LEGEND: Final = (
    "hits: of requests, and of their bytes; cold: loads begun; waited: seconds, over all requests "
    "that waited; p99.9: the wait that one in a thousand exceeded; max: the longest wait; "
    "loading: seconds, over all loads; pool: one cache as large as the fleet; bound: what no pool "
    "can beat."
)
SPEED_LEGEND: Final = (
    "decisions: requests by CPU seconds of the whole simulator; events, misses: by the engine's "
    "own time; a miss is all that it takes from the want to READY, its evictions included."
)


def sheets(rows: Sequence[Row], *, events: bool) -> Iterator[Sheet]:
    """Policies by trace, how fast the engine was, and with `events` what its time went to."""
    for trace in dict.fromkeys(row.trace for row in rows):
        yield _policies(trace, [row for row in rows if row.trace == trace])
    yield _speed(rows)
    if events:
        yield from (_events(row) for row in rows if row.speed is not None)


def _policies(trace: str, rows: Sequence[Row]) -> Sheet:
    columns = (
        *("policy", "hits", "bytes", "cold", "waited s", "p99.9 s", "max s", "loading s"),
        "evicted",
    )
    refused = any(row.tally.refused for row in rows)
    found = []
    for row in rows:
        tally = row.tally
        cells = (
            row.policy,
            f"{tally.hit_rate:.2%}",
            f"{tally.byte_hit_rate:.2%}",
            f"{tally.cold_starts}",
            f"{tally.waited_seconds:.0f}",
            "" if row.policy == BOUND else f"{tally.quantile(0.999):.1f}",
            "" if row.policy == BOUND else f"{tally.longest_wait:.1f}",
            f"{tally.load_seconds:.0f}",
            "" if row.policy == BOUND else f"{tally.evictions}",
        )
        found.append((*cells, f"{tally.refused}") if refused else cells)
    return Sheet(trace, (*columns, "refused") if refused else columns, found)


def _speed(rows: Sequence[Row]) -> Sheet:
    columns = ("engine", "decisions/s", "hits", "events/s", "misses/s", "engine's share")
    found = [
        (
            f"{row.trace}, {row.policy.removeprefix('engine ')}",
            f"{speed.decisions_per_second:.0f}",
            f"{row.tally.hit_rate:.1%}",
            f"{speed.events_per_second:.0f}",
            f"{speed.misses_per_second:.0f}",
            f"{min(1.0, speed.engine_seconds / max(speed.cpu_seconds, 1e-9)):.0%}",
        )
        for row in rows
        if (speed := row.speed) is not None
    ]
    return Sheet("How fast it decides, on one core", columns, found)


def _events(row: Row) -> Sheet:
    assert row.speed is not None
    total = row.speed.engine_seconds
    spent = sorted(row.speed.spent.items(), key=lambda item: -item[1].seconds)
    found = [
        (
            name,
            f"{of.events}",
            f"{of.seconds / of.events * 1e6:.1f}",
            f"{of.seconds / total if total else 0.0:.1%}",
        )
        for name, of in spent
    ]
    return Sheet(f"{row.trace}, {row.policy}: events", ("event", "count", "µs each", "time"), found)


def section(title: str, about: Mapping[str, str], found: Sequence[Sheet]) -> str:
    """Markdown. `about`: what was run on what, in the order in which it is told."""
    lines = [f"## {title}", "", *(f"- {name}: {text}" for name, text in about.items())]
    lines += ["", LEGEND, "", SPEED_LEGEND]
    for sheet in found:
        lines += ["", f"**{sheet.title}**", "", _line(sheet.columns)]
        lines.append(_line(["---", *["---:"] * (len(sheet.columns) - 1)]))
        lines += map(_line, sheet.rows)
    return "\n".join([*lines, ""])


def content(about: Mapping[str, str], rows: Sequence[Row]) -> dict[str, Any]:
    """What `--json` writes."""
    return {**about, "rows": [_content(row) for row in rows]}


def _content(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"trace": row.trace, "policy": row.policy, **row.tally.figures()}
    if row.speed is not None:
        found["speed"] = {
            "decisions_per_second": row.speed.decisions_per_second,
            "events_per_second": row.speed.events_per_second,
            "misses_per_second": row.speed.misses_per_second,
            "cpu_seconds": row.speed.cpu_seconds,
            "events": {
                name: {"events": spent.events, "seconds": spent.seconds}
                for name, spent in row.speed.spent.items()
            },
        }
    return found


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"
