"""One request of a client's stream."""

import time

from opentelemetry import trace

from services.router.admission.admission import Ticket
from services.router.core.attempts import FIRST
from services.router.core.routing.routes import Replica, Target
from services.router.core.wire.reply import ReplyOrder
from services.router.core.wire.request import Sequence
from services.router.unary.lending import Lending


class Exchange:
    """One request of a client's stream, until its last reply."""

    __slots__ = (
        *("again_at", "attempts", "began", "cold", "continues", "failed", "forward", "held", "id"),
        *("memory", "message", "model", "order", "repeated", "sequence", "serial", "size", "span"),
        *("target", "ticket", "version", "wants_final"),
    )

    def __init__(self, serial: int, message: bytes) -> None:
        #: Its place in the stream: 1 for the first request.
        self.serial = serial
        #: When it came, in seconds of the monotonic clock.
        self.began = time.monotonic()
        #: The serialized request, with the servers' names of lent memory. None once a part of the
        #: reply has been passed on, for then the request cannot be repeated.
        self.message: bytes | None = message
        self.size = len(message)
        #: Bytes that it counts for in the memory budget.
        self.held = 0
        #: As the request names them; `id` is the client's.
        self.model = self.version = self.id = ""
        self.sequence: Sequence | None = None
        #: Whether it continues a sequence.
        self.continues = False
        #: The version under which it is counted; None if it is counted elsewhere.
        self.target: Target | None = None
        #: The order that its reply keeps, or None.
        self.order: ReplyOrder[Exchange] | None = None
        #: Permission to be sent; None if it is held elsewhere.
        self.ticket: Ticket | None = None
        #: The caller's memory that its tensors lie in.
        self.memory: Lending | None = None
        #: Whether it asks for an empty final reply; None if Triton will refuse the way it asks.
        self.wants_final: bool | None = False
        self.attempts = FIRST[False]
        #: When it may be sent again, in seconds of the monotonic clock.
        self.again_at = 0.0
        #: The replica on which its repeat counts as running.
        self.repeated: Replica | None = None
        self.cold = self.failed = False
        self.span: trace.Span = trace.INVALID_SPAN
        #: The span of the call to the server.
        self.forward: trace.Span = trace.INVALID_SPAN
