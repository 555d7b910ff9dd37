"""One inference request, however it came in: what it means, when and by whom it is answered, what
is counted."""

import asyncio
import random
import time
import zlib
from typing import Final, NamedTuple

from services.common import telemetry
from services.common.caller import Caller
from services.common.errors import (
    MalformedMessage,
    MessageTooLarge,
    MetadataTooLarge,
    ServerLost,
    ShoalError,
)
from services.common.rpc import HEADER_BYTES
from services.router import classes, tracing
from services.router.admission import Admission
from services.router.controller_client import Rejected
from services.router.core import wire
from services.router.core.priority import HEADER
from services.router.core.routes import Target, resolve, why
from services.router.forward import Forwarder, Metadata, Reply, TritonError
from services.router.holding import hold
from services.router.model_info import ModelInfo
from services.router.placement_watch import PlacementWatch
from services.router.statistics import Statistics

# Triton's control key and our own identity headers are ours alone; the rest of these belong to one
# hop only, or are set anew for the next. A content-length would be wrong for the longer message.
_STRIPPED: Final = (
    *("grpc-", "triton-grpc-protocol-", "x-shoal-"),
    *("content-length", "user-agent", "trace"),
)

_ENTRY_BYTES: Final = 32  # that an entry counts besides its text: RFC 9113, 6.5.2

EXPLAIN: Final = "x-shoal-explain"  # with any value: trailers say who answered, and why

Pairs = tuple[tuple[str, str | bytes], ...]


class Request(NamedTuple):
    """`message`: a serialized ModelInferRequest. `metadata`: the caller's, as it came. `deadline`:
    seconds of the monotonic clock, None for none. `held`: whether its bytes are counted already."""

    message: bytes
    metadata: Pairs
    deadline: float | None
    caller: Caller
    held: bool = False


class Answer(NamedTuple):
    """`message`: a serialized ModelInferResponse. `leading`, `trailing`: the caller's metadata."""

    message: bytes
    leading: Pairs
    trailing: Pairs


class Requests:
    """`max_message`: bytes of one request; `max_metadata`: of a call's, counted as HTTP/2 does.
    `admission`: of all that is sent, whoever sends it."""

    def __init__(
        self,
        watch: PlacementWatch,
        forwarder: Forwarder,
        statistics: Statistics,
        info: ModelInfo,
        admission: Admission,
        *,
        max_message: int,
        max_metadata: int = HEADER_BYTES,
    ) -> None:
        self._watch = watch
        self._forwarder = forwarder
        self._info = info
        self.admission = admission
        self._statistics = statistics
        self._max_message = max_message
        self._max_metadata = max_metadata

    async def answer(self, request: Request) -> Answer:
        """Raises TritonError and Rejected with another service's own status, else ShoalError."""
        began = time.monotonic()
        message = request.message
        target: Target | None = None
        request_id = ""
        failed, cold = True, False
        held = 0
        try:
            if len(message) > self._max_message:
                raise MessageTooLarge(size=len(message), limit=self._max_message)
            self.check_metadata(request.metadata)
            if not request.held:
                held = hold(self.admission.held, len(message))
            head = wire.head(message)
            routes = self._watch.table.routes
            target = resolve(routes, head.model, head.version, draw(head.sequence))
            request_id = head.id
            if head.classes:
                await self.check_classes(message, target)
            renamed = None if target.model == head.model else target.model
            reply = await self._send(request, head, target, renamed)
            failed, cold = False, reply.cold
            answered, trailing = reply.message, forwarded(reply.trailing)
            if renamed is not None:
                answered = wire.overridden(answered, head.model, None)
            if said(request.metadata, EXPLAIN) is not None:
                trailing = (*trailing, *self._explained(head, target, reply))
            return Answer(answered, forwarded(reply.leading), trailing)
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
            self.admission.held.give(held)
            if target is not None:
                self._statistics.add(target, time.monotonic() - began, failed=failed, cold=cold)
                if telemetry.enabled():
                    tracing.describe(target, request_id, cold=cold)

    def _explained(self, head: wire.Head, target: Target, reply: Reply) -> Pairs:
        """What a caller who asks for it is told of the way that the request took."""
        return (
            ("x-shoal-model", target.model),
            ("x-shoal-version", str(target.version)),
            ("x-shoal-server", reply.server),
            ("x-shoal-cold", str(reply.cold).lower()),
            ("x-shoal-why", why(self._watch.table.routes, head.model, head.version, target)),
        )

    def check_metadata(self, metadata: Metadata) -> None:
        """gRPC bounds it only once the client has heard of the bound, and HTTP otherwise. A Triton
        that is sent too much refuses other callers' requests on the same connection with it (seen
        on release 24.10). Raises MetadataTooLarge."""
        size = 0
        for key, value in metadata:
            size += len(key) + len(value) + _ENTRY_BYTES
        if size > self._max_metadata:
            raise MetadataTooLarge(size=size, limit=self._max_metadata)

    async def check_classes(self, message: bytes, target: Target) -> None:
        """Of a request that may ask for classes. Raises NoClasses, Malformed, and Rejected or
        ShoalError where the Controller does not say what `target` has."""
        digest = self._watch.table.digest(target)
        classes.check(message, await self._info.config(target, digest))

    async def _send(
        self, request: Request, head: wire.Head, target: Target, renamed: str | None
    ) -> Reply:
        """To `target`, when its turn has come; that model is `renamed` to, if the request says
        another one. Raises what Admission.enter and turn, and Forwarder.infer raise."""
        retry = self._watch.table.routes[target.model].retry
        sequence = head.sequence
        ticket = self.admission.enter(
            request.caller.tenant,
            target,
            said=said(request.metadata, HEADER),
            parameter=head.priority,
            deadline=request.deadline,
            size=len(request.message),
            begun=sequence is not None and not sequence.start,
        )
        if ticket.turn is not None:
            await self.admission.turn(ticket)
        answered = abandoned = False
        try:
            reply = await self._forwarder.infer(
                target,
                wire.overridden(request.message, renamed, target.version),
                forwarded(request.metadata),
                request.deadline,
                retry=retry,
                sequence=sequence,
            )
            answered = not reply.cold
            return reply
        except asyncio.CancelledError:
            abandoned = True
            raise
        finally:
            self.admission.leave(ticket, answered=answered, abandoned=abandoned)


def said(metadata: Metadata, header: str) -> str | bytes | None:
    """What a call's metadata says under `header`, None where it says nothing."""
    for key, value in metadata:
        if key == header:
            return value
    return None


def draw(sequence: wire.Sequence | None) -> float:
    """In [0, 1): where a traffic policy sends it. A sequence stays with what it began with."""
    if sequence is None:
        return random.random()  # noqa: S311
    return zlib.crc32(str(sequence.id).encode()) / 2**32


def forwarded(metadata: Metadata) -> Pairs:
    """The part of a call's metadata that the next hop may see."""
    return tuple([item for item in metadata if not item[0].startswith(_STRIPPED)])
