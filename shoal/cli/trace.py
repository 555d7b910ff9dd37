"""`shoal trace`: one trace as a waterfall."""

import shutil
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal.cli import collector
from shoal.cli.connections import addresses
from shoal.cli.failures import EXIT_NOT_READY, EXIT_REFUSED, complain
from shoal.cli.output import Document, JsonFlag, give

if TYPE_CHECKING:
    from rich.console import RenderableType

# Seconds. The parts of a stack send their spans within half a second of their end.
QUIET: Final = 1.2
_LONG_AGO: Final = 10.0
_POLL: Final = 0.1
_ANSWER: Final = 5.0
_PIPE_WIDTH: Final = 120  # cells

_AWAY: Final = (
    "`shoal up` starts one unless traces are sent elsewhere. Say where it is with --announce or "
    "SHOAL_OTLP_HTTP_PORT."
)


def trace(
    context: typer.Context,
    trace_id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="ID of the trace: 32 hexadecimal digits.", show_default=False
        ),
    ] = "",
    last: Annotated[bool, typer.Option("--last", help="Show the newest trace.")] = False,
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Time to wait for the spans of a new trace."),
    ] = 6.0,
    json: JsonFlag = False,
) -> None:
    """Show one trace: what each part of the stack did for a request, and when.

    `shoal infer --trace` makes a trace and prints its ID. Only the newest traces are kept.
    """
    if last == bool(trace_id):
        raise typer.BadParameter("give either the ID of a trace or --last")
    if trace_id and not _is_id(trace_id):
        raise typer.BadParameter(
            f"{trace_id!r} is not the ID of a trace, which has 32 hexadecimal digits"
        )
    address = addresses(context).collector
    if address is None:
        complain(f"there is no trace collector. {_AWAY}")
        raise typer.Exit(EXIT_NOT_READY)
    try:
        found = _read(address, trace_id.lower(), time.monotonic() + wait)
    except collector.CollectorAway as error:
        complain(f"the collector at {error}. {_AWAY}")
        raise typer.Exit(EXIT_NOT_READY) from error
    if found is None:
        complain(_missing(trace_id))
        raise typer.Exit(EXIT_REFUSED)
    give(found, _rendered, json)


def _is_id(text: str) -> bool:
    return len(text) == 32 and all(sign in "0123456789abcdefABCDEF" for sign in text)


def _missing(trace_id: str) -> str:
    if not trace_id:
        return "no trace was received yet: make one with `shoal infer MODEL --input … --trace`"
    return f"trace {trace_id} was not received, or is too old: only the newest are kept"


def _read(address: str, trace_id: str, deadline: float) -> Document | None:
    """Return the trace once it has stopped growing, or None. The newest trace for ""."""
    if trace_id:
        return settled(lambda: _spans(address, trace_id), _complete, deadline)
    newest = settled(lambda: _newest(address), lambda _: False, deadline)
    return None if newest is None else _spans(address, newest["trace_id"])


def _spans(address: str, trace_id: str) -> Document | None:
    return collector.get(address, f"/api/traces/{trace_id}", _ANSWER)


def _newest(address: str) -> Document | None:
    listed = collector.get(address, "/api/traces?limit=1", _ANSWER)
    traces: list[Document] = listed["traces"] if listed else []
    return traces[0] if traces else None


def _size(found: Document) -> Hashable:
    spans = found["spans"]
    return found["trace_id"], spans if isinstance(spans, int) else len(spans)


def _complete(found: Document) -> bool:
    """Return whether the trace ended so long ago that all of it must have arrived."""
    ended = max(span["end_unix_nano"] for span in found["spans"])
    return bool(time.time_ns() - ended > _LONG_AGO * 1e9)


def settled(
    read: Callable[[], Document | None], done: Callable[[Document], bool], deadline: float
) -> Document | None:
    """Return what `read` returns, once it is `done`, or kept its size for QUIET seconds.

    At the deadline, a `time.monotonic()`, it is returned as it is.
    """
    size: Any = None
    since = time.monotonic()
    while True:
        found = read()
        now = time.monotonic()
        if (current := None if found is None else _size(found)) != size:
            size, since = current, now
        quiet = found is not None and (now - since >= QUIET or done(found))
        if quiet or now >= deadline:
            return found
        time.sleep(_POLL)


def _rendered(found: Document) -> "RenderableType":
    from shoal.cli.waterfall import waterfall

    # Output to a pipe is as wide as a page, or as COLUMNS says.
    width = shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns
    return waterfall(found["spans"], width)
