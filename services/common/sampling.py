"""What `telemetry.sampled` and the SDK's sampler tell each other about the next root span."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, NamedTuple

REFUSED: Final = 0

# The last answer that `sampled` gave in this context: the trace id that it drew, or REFUSED. The
# root span takes over the id, so that the sampler, asked again inside the SDK, sees the same id and
# decides the same.
drawn: Final[ContextVar[int | None]] = ContextVar("drawn", default=None)


class RecordedSpan(NamedTuple):
    """A root span that another process has measured. Times are in nanoseconds of the epoch."""

    name: str
    trace_id: int
    span_id: int
    start_ns: int
    end_ns: int
    failed: bool
    attributes: Mapping[str, str]
