"""Tables of figures."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table


class Sheet(NamedTuple):
    """A table that can be drawn and written: the first column holds names, the others figures."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def drawn(sheet: Sheet) -> Table:
    table = Table(
        title=sheet.title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for number, column in enumerate(sheet.columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*row)
    return table
