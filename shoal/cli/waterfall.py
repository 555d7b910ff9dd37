"""One trace as text: a row for each span, with a bar that shows when it ran."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

# Attributes that are shown, by the last part of their names. All others are in the JSON.
_SHOWN: Final = {
    "model": "model",
    "model_name": "model",
    "version": "version",
    "model_version": "version",
    "arm": "arm",
    "server": "server",
    "evicted": "evicted",
    "reason": "reason",
}

ORPHAN: Final = "┄ "
_BAR, _CRITICAL_BAR, _BLANK = "░", "█", " "
_SMALLEST_BAR: Final = 8  # cells
_NUMBERS: Final = 24  # cells that both columns of times and the gaps between all columns take
_LEGEND: Final = f"{_CRITICAL_BAR} on the critical path  {_BAR} off it  {ORPHAN}parent not received"


def waterfall(spans: Sequence[Mapping[str, Any]], width: int) -> RenderableType:
    """Draw `spans`, the list of that name in the answer to `GET /api/traces/{trace_id}`.

    They are all of one trace and in the order of the rows, with `depth`, `orphan` and `critical`.
    Their times are taken to be of one clock. `width` is in cells.
    """
    if not spans:
        return Text("This trace has no spans.")
    began = min(span["start_unix_nano"] for span in spans)
    ended = max(span["end_unix_nano"] for span in spans)
    labels = [_label(span) for span in spans]
    details = [_details(span) for span in spans]
    cells = _columns(width, max(map(len, labels)), max(map(len, details)))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("span", width=cells[0], no_wrap=True, overflow="ellipsis")
    table.add_column("start ms", width=9, justify="right", no_wrap=True)
    table.add_column("took ms", width=9, justify="right", no_wrap=True)
    table.add_column("", width=cells[1], no_wrap=True)
    table.add_column("", width=cells[2], no_wrap=True, overflow="ellipsis")
    for span, label, detail in zip(spans, labels, details, strict=True):
        start, end = span["start_unix_nano"], span["end_unix_nano"]
        left, length = bar(start, end, began, ended, cells[1])
        block = _CRITICAL_BAR if span.get("critical") else _BAR
        table.add_row(
            Text(label),
            _ms(start - began),
            _ms(end - start),
            Text(_BLANK * left + block * length),
            Text(detail),
            style="red" if _failed(span) else "",
        )
    return Group(_title(spans, ended - began), table, Text(_LEGEND, style="dim"))


def bar(start: int, end: int, began: int, ended: int, cells: int) -> tuple[int, int]:
    """Return where the bar of a span lies in a row of `cells`: its left end, and its length.

    The span ran from `start` to `end`, in a trace that ran from `began` to `ended`. The length is
    1 or more.
    """
    whole = max(1, ended - began)
    left = min(cells - 1, (start - began) * cells // whole)
    right = -(-(end - began) * cells // whole)
    return left, max(1, min(cells, right) - left)


def _columns(width: int, label: int, detail: int) -> tuple[int, int, int]:
    """Return the cells for names, bars and details. Bars get what the others leave."""
    free = max(3 * _SMALLEST_BAR, width - _NUMBERS)
    label = min(label, max(_SMALLEST_BAR, free * 2 // 5))
    detail = max(1, min(detail, (free - label) * 3 // 5))
    return label, max(_SMALLEST_BAR, free - label - detail), detail


def _title(spans: Sequence[Mapping[str, Any]], nanoseconds: int) -> Text:
    services = dict.fromkeys(_plain(span["service"]) for span in spans)
    return Text(
        f"trace {_plain(spans[0]['trace_id'])}  {_ms(nanoseconds)} ms  {', '.join(services)}",
        style="bold",
    )


def _label(span: Mapping[str, Any]) -> str:
    mark = ORPHAN if span.get("orphan") else ""
    indent = "  " * int(span.get("depth", 0))
    return f"{indent}{mark}{_plain(span['name'])}"


def _details(span: Mapping[str, Any]) -> str:
    return "  ".join(_detail_parts(span))


def _detail_parts(span: Mapping[str, Any]) -> Iterator[str]:
    if _failed(span):
        message = _plain(span["status"].get("message", ""))
        yield f"error: {message}" if message else "error"
    instance = span.get("instance", "")
    yield _plain(f"{span['service']}/{instance}" if instance else span["service"])
    for name, value in span.get("attributes", {}).items():
        word = _SHOWN.get(name.rpartition(".")[2])
        if word is not None and value not in ("", [], None):
            items = value if isinstance(value, list) else [value]
            yield f"{word}={_plain(','.join(map(str, items)))}"


def _failed(span: Mapping[str, Any]) -> bool:
    return bool(span.get("status", {}).get("code") == "error")


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.2f}"


def _plain(text: object) -> str:
    """Replace control characters, so that text from elsewhere cannot control the terminal."""
    return "".join(sign if sign.isprintable() else "·" for sign in str(text))
