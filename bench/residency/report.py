"""Tables for people: in the terminal, and as a section of bench/RESULTS.md."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich import table as rich


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def shown(table: Table) -> rich.Table:
    found = rich.Table(title=table.title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for index, column in enumerate(table.columns):
        found.add_column(column, justify="right" if _numeric(table, index) else "left")
    for row in table.rows:
        found.add_row(*row)
    return found


def section(title: str, about: Mapping[str, str], tables: Sequence[Table]) -> str:
    """Markdown. `about`: what was measured on what, in the order in which it is told."""
    lines = [f"## {title}", "", *(f"- {name}: {text}" for name, text in about.items())]
    for table in tables:
        marks = ["---:" if _numeric(table, at) else "---" for at in range(len(table.columns))]
        lines += ["", f"**{table.title}**", "", _line(table.columns), _line(marks)]
        lines += map(_line, table.rows)
    return "\n".join([*lines, ""])


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def _numeric(table: Table, index: int) -> bool:
    return all(row[index][-1:].isdigit() or not row[index] for row in table.rows)
