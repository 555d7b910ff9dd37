"""The figures for people: a table in the terminal, and a section of bench/RESULTS.md."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rich.table import Table

from bench.rounds import DIRECT, Summary
from bench.workloads import WORKLOADS

COLUMNS: Final = (
    "variant",
    "requests/s",
    "of direct (range)",
    "p50 µs",
    "× direct",
    "p99 µs",
    "proxy",
    "× relay",
    "Triton",
    "load",
)
LEGEND: Final = "Medians; ratios are to the same round's. proxy, Triton, load: CPU µs per request."
_TITLES: Final = {workload.name: workload.title for workload in WORKLOADS}


def tables(summaries: Sequence[Summary]) -> Iterator[Table]:
    """One for each workload."""
    for workload in dict.fromkeys(one.workload for one in summaries):
        table = Table(title=_TITLES[workload], title_justify="left")
        for column in COLUMNS:
            left = column == COLUMNS[0]
            table.add_column(column, justify="left" if left else "right", no_wrap=True)
        for one in summaries:
            if one.workload == workload:
                table.add_row(*row(one))
        yield table


def row(one: Summary) -> tuple[str, ...]:
    compared = one.variant != DIRECT
    return (
        one.variant,
        f"{one.rate:,.0f}",
        _range(one) if compared else "",
        f"{one.p50:,.0f}",
        _ratio(one.times_direct) if compared else "",
        f"{one.p99:,.0f}",
        "" if one.proxy_cpu is None else f"{one.proxy_cpu:.0f}",
        _ratio(one.over_relay),
        f"{one.triton_cpu:.0f}",
        f"{one.load_cpu:.0f}",
    )


def section(title: str, about: Mapping[str, str], summaries: Sequence[Summary]) -> str:
    """Markdown. `about`: what was measured on what, in the order in which it is told."""
    lines = [f"## {title}", ""]
    lines += [f"- {name}: {text}" for name, text in about.items()]
    for workload in dict.fromkeys(one.workload for one in summaries):
        lines += ["", f"**{_TITLES[workload]}**", "", _line(COLUMNS)]
        lines.append(_line(["---", *["---:"] * (len(COLUMNS) - 1)]))
        lines += [_line(row(one)) for one in summaries if one.workload == workload]
    return "\n".join([*lines, "", LEGEND, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _range(one: Summary) -> str:
    if one.of_direct is None or one.spread is None:
        return ""
    low, high = one.spread
    return f"{one.of_direct:.2f} ({low:.2f}–{high:.2f})"
