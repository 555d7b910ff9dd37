"""What people see: what is being done, a row for every answer, and a summary."""

import contextlib
import shutil
from collections.abc import Sequence
from statistics import median
from typing import Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from services.embedded.demo.asking import Answer
from services.embedded.demo.script import Script

_PIPE_WIDTH: Final = 120  # cells
_GAP: Final = 2
_NARROWEST: Final = 8
_HEADINGS: Final = ("model", "asked", "answered", "", "", "ms", "trace", "evicted for it")
_FIXED: Final = {0: 17, 3: 1, 4: 4, 5: 6, 6: 8}  # cells of a column; the others share the rest
_TRACE: Final = 6
_TRACE_FROM: Final = 110  # cells; narrower, there is no room for the traces' column
_SHORT_ID: Final = 8


class DemoDisplay:
    """The demo's output: plain lines unless on a terminal, and silent once that is gone."""

    def __init__(self) -> None:
        width = shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns
        self.console = Console(highlight=False, width=width)
        left_out = () if width >= _TRACE_FROM else (_TRACE,)
        self._columns = [column for column in range(len(_HEADINGS)) if column not in left_out]
        self._widths = _widths(width, self._columns)

    def say(self, text: str = "", style: str = "") -> None:
        self.show(Text(text, style), wrapped=False)

    def show(self, what: RenderableType, *, wrapped: bool = True) -> None:
        try:
            self.console.print(what, soft_wrap=not wrapped)
        except OSError:  # the terminal is gone, and the stack must be stopped all the same
            self.console.quiet = True

    def headings(self) -> None:
        self._row([Text(heading, "dim") for heading in _HEADINGS])

    def asking(self, name: str) -> contextlib.AbstractContextManager[object]:
        """Show on a terminal what is being asked, until there is a row for it."""
        if not self.console.is_terminal:
            return contextlib.nullcontext()
        return self.console.status(f"asking {name}")

    def answer(self, answer: Answer) -> None:
        self._row(
            [
                Text(answer.question.name),
                Text(answer.asked),
                Text(answer.answered),
                Text("✗", "bold red") if answer.wrong else Text("✓", "green"),
                Text("cold", "blue") if answer.cold else Text("warm", "yellow"),
                Text(f"{answer.milliseconds:.0f}", justify="right"),
                Text(answer.trace_id[:_SHORT_ID], "dim"),
                Text("\n".join(answer.evicted)),
            ]
        )
        if answer.wrong:
            self.say(f"  {answer.wrong}", "red")

    def trace_ids(self, answers: Sequence[Answer]) -> None:
        """Show the traces' ids, as many in a line as fit."""
        ids = [answer.trace_id for answer in answers]
        step = max(1, (self.console.width - _GAP) // (len(ids[0]) + _GAP))
        for start in range(0, len(ids), step):
            self.say("  " + "  ".join(ids[start : start + step]), "dim")

    def _row(self, cells: Sequence[Text]) -> None:
        table = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0), pad_edge=False)
        for column in self._columns:
            table.add_column(width=self._widths[column], no_wrap=True, overflow="ellipsis")
        table.add_row(*(cells[column] for column in self._columns))
        self.show(table)


def summary(script: Script, places: int, answers: Sequence[Answer]) -> str:
    """Return one line about all answers; times are medians."""
    models = len({answer.question.model for answer in answers})
    cold = [answer.milliseconds for answer in answers if answer.cold]
    warm = [answer.milliseconds for answer in answers if not answer.cold]
    wrong = sum(bool(answer.wrong) for answer in answers)
    return (
        f"{len(answers)} requests to {models} of {script.models} models with room for {places}: "
        f"{_timed(cold, 'cold')}, {_timed(warm, 'warm')}; "
        f"{sum(len(answer.evicted) for answer in answers)} evictions; "
        f"{f'{wrong} wrong or failed' if wrong else 'every answer right'}"
    )


def _timed(milliseconds: Sequence[float], word: str) -> str:
    if not milliseconds:
        return f"none {word}"
    return f"{len(milliseconds)} {word} (median {median(milliseconds):.0f} ms)"


def _widths(width: int, columns: Sequence[int]) -> dict[int, int]:
    fixed = {column: cells for column, cells in _FIXED.items() if column in columns}
    free = width - sum(fixed.values()) - _GAP * (len(columns) - 1)
    shared = [column for column in columns if column not in fixed]
    return fixed | dict.fromkeys(shared, max(_NARROWEST, free // len(shared)))
