"""The figures for people: a table in the terminal, and a section of bench/RESULTS.md."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rich.table import Table

from bench.rounds import DIRECT, RELAY, Summary
from bench.workloads import WORKLOADS

VARIANT: Final = "variant"
RANGE: Final = "range"
CERTAIN: Final = "95 %"
WIDE: Final = (
    RANGE,
    CERTAIN,
    "× direct",
    "Triton",
    "load",
)  # left out in a terminal: the rest fits 80 columns
COLUMNS: Final = (
    VARIANT,
    *("answers/s", "of direct", RANGE, "of relay", CERTAIN, "p50 µs", "× direct", "p99 µs"),
    *("proxy", "× relay", "Triton", "load"),
)
LEGEND: Final = (
    "Medians; ratios within a round; 95 %: the interval of the ratio to the relay with that "
    "confidence, or from the lowest to the highest of fewer than six rounds. p50, p99: of a call, "
    "which is a whole stream where there are streams. proxy, Triton, load: CPU µs of each per "
    "answer; × relay: the proxy's by the relay's."
)
_TITLES: Final = {workload.name: workload.title for workload in WORKLOADS}


def tables(summaries: Sequence[Summary]) -> Iterator[Table]:
    """One for each workload."""
    shown = [column for column in COLUMNS if column not in WIDE]
    for workload in dict.fromkeys(one.workload for one in summaries):
        table = Table(
            title=_TITLES[workload],
            title_justify="left",
            box=None,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for column in shown:
            table.add_column(column, justify="left" if column == VARIANT else "right", no_wrap=True)
        for one in summaries:
            if one.workload == workload:
                found = cells(one)
                table.add_row(*(found[column] for column in shown))
        yield table


def cells(one: Summary) -> dict[str, str]:
    """What stands under each of COLUMNS; nothing where there is nothing to compare."""
    compared = one.variant != DIRECT
    return {
        VARIANT: one.variant,
        "answers/s": f"{one.rate:.0f}",
        "of direct": _ratio(one.of_direct) if compared else "",
        RANGE: _range(one.spread) if compared else "",
        "of relay": _ratio(one.of_relay) if compared else "",
        CERTAIN: _range(one.certain) if one.variant not in (DIRECT, RELAY) else "",
        "p50 µs": f"{one.p50:.0f}",
        "× direct": _ratio(one.times_direct) if compared else "",
        "p99 µs": f"{one.p99:.0f}",
        "proxy": "" if one.proxy_cpu is None else f"{one.proxy_cpu:.0f}",
        "× relay": _ratio(one.over_relay),
        "Triton": f"{one.triton_cpu:.0f}",
        "load": f"{one.load_cpu:.0f}",
    }


def section(title: str, about: Mapping[str, str], summaries: Sequence[Summary]) -> str:
    """Markdown. `about`: what was measured on what, in the order in which it is told."""
    lines = [f"## {title}", "", *(f"- {name}: {text}" for name, text in about.items()), "", LEGEND]
    for workload in dict.fromkeys(one.workload for one in summaries):
        lines += ["", f"**{_TITLES[workload]}**", "", _line(COLUMNS)]
        lines.append(_line(["---", *["---:"] * (len(COLUMNS) - 1)]))
        for one in summaries:
            if one.workload == workload:
                lines.append(_line(list(cells(one).values())))
    return "\n".join([*lines, ""])


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def _range(values: tuple[float, float] | None) -> str:
    return "" if values is None else f"{values[0]:.2f} to {values[1]:.2f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
