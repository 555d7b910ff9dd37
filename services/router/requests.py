"""One inference request, however it came in: what it means, who answers, what is counted."""

import random
import time
import zlib
from typing import Final, NamedTuple

from services.common import telemetry
from services.common.caller import Caller
from services.common.errors import MalformedMessage, MessageTooLarge, ServerLost, ShoalError
from services.router import tracing
from services.router.controller_client import Rejected
from services.router.core import wire
from services.router.core.routes import Target, resolve
from services.router.forward import Forwarder, Metadata, TritonError
from services.router.placement_watch import PlacementWatch
from services.router.statistics import Statistics

# Triton's control key and our own identity headers are ours alone; the rest of these belong to one
# hop only, or are set anew for the next. A content-length would be wrong for the longer message.
_STRIPPED: Final = (
    *("grpc-", "triton-grpc-protocol-", "x-shoal-"),
    *("content-length", "user-agent", "trace"),
)


Pairs = tuple[tuple[str, str | bytes], ...]


class Request(NamedTuple):
    """`message`: a serialized ModelInferRequest. `metadata`: the caller's, as it came. `deadline`:
    seconds of the monotonic clock, None for none."""

    message: bytes
    metadata: Pairs
    deadline: float | None
    caller: Caller


class Answer(NamedTuple):
    """`message`: a serialized ModelInferResponse. `leading`, `trailing`: the caller's metadata."""

    message: bytes
    leading: Pairs
    trailing: Pairs


class Requests:
    """`max_message`: bytes of one request."""

    def __init__(
        self,
        watch: PlacementWatch,
        forwarder: Forwarder,
        statistics: Statistics,
        *,
        max_message: int,
    ) -> None:
        self._watch = watch
        self._forwarder = forwarder
        self._statistics = statistics
        self._max_message = max_message

    async def answer(self, request: Request) -> Answer:
        """Raises TritonError and Rejected with another service's own status, else ShoalError."""
        began = time.monotonic()
        message = request.message
        target: Target | None = None
        request_id = ""
        failed, cold = True, False
        try:
            if len(message) > self._max_message:
                raise MessageTooLarge(size=len(message), limit=self._max_message)
            head = wire.head(message)
            routes = self._watch.table.routes
            target = resolve(routes, head.model, head.version, draw(head.sequence))
            request_id = head.id
            renamed = None if target.model == head.model else target.model
            reply = await self._forwarder.infer(
                target,
                wire.overridden(message, renamed, target.version),
                forwarded(request.metadata),
                request.deadline,
                retry=routes[target.model].retry,
                sequence=head.sequence,
            )
            failed, cold = False, reply.cold
            answered = reply.message
            if renamed is not None:
                answered = wire.overridden(answered, head.model, None)
            return Answer(answered, forwarded(reply.leading), forwarded(reply.trailing))
        except TritonError as error:
            cold = error.cold
            raise
        except Rejected:
            cold = True
            raise
        except wire.Malformed as error:
            raise MalformedMessage(
                message_type="inference.ModelInferRequest", problem=error
            ) from error
        except ShoalError as error:
            cold = isinstance(error, ServerLost)
            raise
        finally:
            if target is not None:
                self._statistics.add(target, time.monotonic() - began, failed=failed, cold=cold)
                if telemetry.enabled():
                    tracing.describe(target, request_id, cold=cold)


def draw(sequence: wire.Sequence | None) -> float:
    """In [0, 1): where a traffic policy sends it. A sequence stays with what it began with."""
    if sequence is None:
        return random.random()  # noqa: S311
    return zlib.crc32(str(sequence.id).encode()) / 2**32


def forwarded(metadata: Metadata) -> Pairs:
    """The part of a call's metadata that the next hop may see."""
    return tuple([item for item in metadata if not item[0].startswith(_STRIPPED)])
