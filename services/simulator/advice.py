"""What each policy, and more memory, would save: one trace under both, again and again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from services.simulator.runs import Case, engine
from services.simulator.sheets import Sheet
from services.simulator.tally import Tally

FACTORS: Final = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)  # of the memory that there is

LEGEND: Final = (
    "cold s: seconds, over all requests that waited for a load; saved: of those of the first row; "
    "p99.9, max: the wait that one in a thousand exceeded, and the longest, in seconds."
)

WIDTH: Final = 640
HEIGHT: Final = 400
LEFT: Final = 80
RIGHT: Final = 20
TOP: Final = 40
BOTTOM: Final = 60
COLOURS: Final = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


class Outcome(NamedTuple):
    """What came of a trace with a `policy`, and `factor` times the memory."""

    policy: str
    factor: float
    tally: Tally

    @property
    def cold_seconds(self) -> float:
        """Seconds that requests waited for loads."""
        return self.tally.waited_seconds


def outcomes(case: Case, policies: Sequence[str]) -> list[Outcome]:
    """Run a trace under each policy with each amount of memory."""
    found = []
    for policy in policies:
        for factor in FACTORS:
            budget = round(case.hardware.budget * factor)
            larger = replace(case, hardware=replace(case.hardware, budget=budget))
            found.append(Outcome(policy, factor, engine(larger, policy).tally))
    return found


def sheet(name: str, found: Sequence[Outcome]) -> Sheet:
    """A row for each outcome; what is saved is counted from the first one."""
    first = found[0]
    columns = (
        *("policy", "memory", "hits", "cold", "cold s", "saved s", "saved", "p99.9", "max s"),
        "refused",
    )
    rows = []
    for outcome in found:
        saved = first.cold_seconds - outcome.cold_seconds
        share = saved / first.cold_seconds if first.cold_seconds else 0.0
        rows.append(
            (
                outcome.policy,
                f"{outcome.factor - 1:+.0%}",
                f"{outcome.tally.hit_rate:.2%}",
                f"{outcome.tally.cold_starts}",
                f"{outcome.cold_seconds:.0f}",
                f"{saved:.0f}",
                f"{share:.0%}",
                f"{outcome.tally.quantile(0.999):.1f}",
                f"{outcome.tally.longest_wait:.1f}",
                f"{outcome.tally.refused}",
            )
        )
    title = f"{name}: what is saved, from {first.policy} with the memory that there is"
    return Sheet(title, columns, rows)


def plot(path: Path, name: str, found: Sequence[Outcome]) -> None:
    """Draw cold seconds against memory, a line for each policy, as an SVG."""
    path.write_text(svg(name, found), encoding="utf-8")


def svg(name: str, found: Sequence[Outcome]) -> str:
    most = max(outcome.cold_seconds for outcome in found) or 1.0
    low, high = min(FACTORS), max(FACTORS)

    def x(factor: float) -> float:
        return LEFT + (factor - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(seconds: float) -> float:
        return HEIGHT - BOTTOM - seconds / most * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{_escaped(name)}: cold seconds by memory</text>',
    ]
    for part in range(5):
        seconds = most * part / 4
        at = y(seconds)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{seconds:,.0f} s</text>'
        )
    for factor in FACTORS:
        parts.append(
            f'<text x="{x(factor):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{factor - 1:+.0%}</text>"
        )
    for index, policy in enumerate(dict.fromkeys(outcome.policy for outcome in found)):
        colour = COLOURS[index % len(COLOURS)]
        points = " ".join(
            f"{x(each.factor):.1f},{y(each.cold_seconds):.1f}"
            for each in found
            if each.policy == policy
        )
        legend = LEFT + 120 * index
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{legend}" y="{HEIGHT - 12}" fill="{colour}">{_escaped(policy)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
