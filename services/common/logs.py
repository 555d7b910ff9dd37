"""Log lines: one JSON object each on stderr, or text for people where stderr is a terminal.

`SHOAL_LOG_FORMAT` (json, console) and `SHOAL_LOG_LEVEL` (debug, info, warning, error) change that.
Everybody logs through `structlog.get_logger(__name__)`; what libraries log through `logging` comes
out the same way. uvicorn installs handlers of its own unless it is given `log_config=None`.
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

# One line for each HTTP request is for debugging only.
_PER_REQUEST: Final = ("uvicorn.access",)

# The same list at every call: loggers that were made already go on using it.
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
    """Says when, how grave, where, what and in which trace, in this order."""

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
        # Twice: its order first, its values last.
        return {**stamp, **event, **stamp}


class _Stderr:
    """Writes lines to what sys.stderr is at that time."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str) -> None:
        # When nobody reads the log any more, the work goes on.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{line}\n")

    debug = info = warning = warn = error = exception = critical = fatal = log = msg


class _Route(logging.Handler):
    """Takes the records of `logging`."""

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
