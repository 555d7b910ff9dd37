"""The output of commands: JSON for programs, tables for people.

JSON has the field names of the protos. 64-bit numbers are numbers, durations are seconds, times are
RFC 3339 in UTC, enum values lose the prefix of their enum, and unset messages are null. Fields of
bytes, such as a version's config, are left out.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal.sizes import format_size

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console, RenderableType

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

Document = dict[str, Any]

_PIPE_WIDTH: Final = 10_000  # cells; output to a pipe is never wrapped or cut


def print_json(document: object, *, indent: int | None = 2) -> None:
    """Print a document as JSON, on one line where `indent` is None."""
    print(json.dumps(document, indent=indent), flush=True)


def message_json(message: "Message") -> Document:
    """Return a message as this module's JSON."""
    from google.protobuf.descriptor import FieldDescriptor

    return {
        field.name: _field_json(message, field)
        for field in message.DESCRIPTOR.fields
        if field.type != FieldDescriptor.TYPE_BYTES
    }


def _field_json(message: "Message", field: Any) -> Any:
    value = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if field.is_repeated:
        return [_value_json(item, field) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value_json(value, field)


def _value_json(value: Any, field: Any) -> Any:
    if field.enum_type is not None:
        return _enum_json(value, field.enum_type)
    if field.message_type is None:
        return value
    match field.message_type.full_name:
        case "google.protobuf.Duration":
            return value.ToNanoseconds() / 1e9
        case "google.protobuf.Timestamp":
            return value.ToJsonString()
    return message_json(value)


def _enum_json(number: int, kind: Any) -> str | int:
    known = kind.values_by_number.get(number)
    if known is None:
        return number
    # All values of an enum have the prefix of its first one, which ends in UNSPECIFIED.
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(known.name.removeprefix(prefix))


# --- for people -----------------------------------------------------------------------------------


def console(*, stderr: bool = False) -> "Console":
    """Return a console that fits the terminal, or one wide enough for everything in a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> "RenderableType":
    """Return a table whose last column may wrap.

    A column whose heading begins with ">" is aligned to the right.
    """
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        right = heading.startswith(">")
        drawn.add_column(
            heading.removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=heading != headings[-1],
            overflow="fold" if heading == headings[-1] else "ellipsis",
        )
    for row in rows:
        drawn.add_row(*(Text(printable(cell, lines=True), _style(cell)) for cell in row))
    return drawn


def show(rendered: "RenderableType") -> None:
    """Print for people, without trailing spaces where the output is not a terminal."""
    screen = console()
    if screen.is_terminal:
        screen.print(rendered)
        return
    with screen.capture() as captured:
        screen.print(rendered)
    for line in captured.get().splitlines():
        print(line.rstrip())


def give(document: Document, render: Callable[[Document], "RenderableType"], as_json: bool) -> None:
    """Print a document as JSON for programs, or as `render` draws it for people."""
    if as_json:
        print_json(document)
    else:
        show(render(document))


def printable(text: str, *, lines: bool = False) -> str:
    """Replace control characters, so that text from elsewhere cannot control the terminal."""
    return "".join(sign if sign.isprintable() or (lines and sign == "\n") else "·" for sign in text)


def _style(cell: str) -> str:
    return _STYLES.get(cell, "")


_STYLES: Final = {
    **dict.fromkeys(("ready", "READY", "HEALTHY", "APPROVED"), "green"),
    **dict.fromkeys(
        ("QUEUED", "LOADING", "DRAINING", "UNLOADING", "PENDING", "WAITING", "UNKNOWN"),
        "yellow",
    ),
    **dict.fromkeys(
        ("not ready", "unreachable", "FAILED", "UNREACHABLE", "UNUSABLE", "REJECTED", "INVALID"),
        "red",
    ),
}


def memory(amounts: Mapping[str, int]) -> str:
    """Return amounts for people, one line for each resource.

    Without the resource's name where "ram" is the only one.
    """
    if list(amounts) == ["ram"]:
        return format_size(amounts["ram"])
    return "\n".join(f"{resource} {format_size(size)}" for resource, size in amounts.items())


def clock(time: str) -> str:
    """The local time of day of an RFC 3339 time, to the millisecond."""
    moment = datetime.fromisoformat(time).astimezone()
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"


def seconds(value: float | None) -> str:
    """Return a duration for people, in a unit that needs few digits; "" for None."""
    if value is None:
        return ""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{value // 60:.0f}m{value % 60:02.0f}s"
    return f"{value // 3600:.0f}h{value % 3600 // 60:02.0f}m"


def counted(number: int, noun: str) -> str:
    """Return a number with a regular noun, such as `1 model` or `3 models`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
