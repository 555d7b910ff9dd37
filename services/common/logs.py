"""Log lines on stderr: one JSON object each, or text for people if stderr is a terminal.

`SHOAL_LOG_FORMAT` (json, console) and `SHOAL_LOG_LEVEL` (debug, info, warning, error) override
this. Shoal logs through `structlog.get_logger(__name__)`, and what libraries log through `logging`
comes out in the same form. (uvicorn must be given `log_config=None`, or it installs its own.)
"""

import contextlib
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor

from services.common import variables
from services.common.masking import masked

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_LEVEL_OF_METHOD: Final = {"exception": "error", "warn": "warning", "fatal": "critical"}

# These log a line for each HTTP request, which is for debugging only.
_PER_REQUEST: Final = ("uvicorn.access",)

# Always the same list, which existing loggers keep using when `configure` is called again.
_processors: Final[list[Processor]] = []


def configure(service: str) -> None:
    """Set up the process's logging. Raises variables.BadVariable."""
    terminal = sys.stderr.isatty()
    level = LEVELS[variables.choice("SHOAL_LOG_LEVEL", tuple(LEVELS), "info")]
    form = variables.choice(
        "SHOAL_LOG_FORMAT", ("json", "console"), "console" if terminal else "json"
    )
    prepared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        _Stamp(service),
        _mask,
    ]
    rendered = _json() if form == "json" else _console(terminal)
    _processors[:] = [*prepared, rendered]
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Stderr,
        cache_logger_on_first_use=True,
    )
    _route_standard_logging(level, prepared, rendered)


class _Stamp:
    """Adds time, level, service, event and trace, in this order."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        stamp: EventDict = {
            "timestamp": datetime.now(UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": _LEVEL_OF_METHOD.get(method, method),
            "service": self._service,
            "event": event.get("event", ""),
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            stamp["trace_id"] = f"{span.trace_id:032x}"
            stamp["span_id"] = f"{span.span_id:016x}"
        # The first for its order, the last for its values.
        return {**stamp, **event, **stamp}


class _Stderr:
    """Writes lines to the current sys.stderr."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str) -> None:
        # The work goes on even if nobody reads the log any more.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{line}\n")

    debug = info = warning = warn = error = exception = critical = fatal = log = msg


class _Route(logging.Handler):
    """Passes on the records of `logging`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
        else:
            _stderr.msg(line)


_stderr: Final = _Stderr()


def _route_standard_logging(level: int, prepared: list[Processor], rendered: Processor) -> None:
    route = _Route()
    route.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *prepared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, rendered],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [one for one in root.handlers if not isinstance(one, _Route)] + [route]
    root.setLevel(level)
    for name in _PER_REQUEST:
        logging.getLogger(name).setLevel(level if level == logging.DEBUG else logging.WARNING)
    logging.captureWarnings(True)


def _mask(_: Any, __: str, event: EventDict) -> EventDict:
    blotted: EventDict = masked(event)
    return blotted


def _json() -> Processor:
    return structlog.processors.JSONRenderer(ensure_ascii=False)


def _console(colours: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=colours, exception_formatter=structlog.dev.plain_traceback
    )
