"""Asks the Controller to make versions resident, and for their configs."""

import asyncio
import math
import random
import time
from dataclasses import dataclass
from typing import Final

import grpc
from opentelemetry import trace

from services.common import telemetry
from services.common.errors import DeadlineBeforeResident, NotReady, ShoalError, StandsBy
from services.common.status import WHOLE_ERRORS, error_info
from services.common.tasks import TaskScope
from services.router.control.answers import NOBODY_ACTS, Rejected
from services.router.control.leader import ActingController, ControllerLost
from services.router.control.placement_watch import PlacementWatch, replica_of
from services.router.core.attempts import Miss
from services.router.core.errors import ControllerUnavailable, NoLease
from services.router.core.routing.routes import Replica, Target
from services.router.core.routing.table import Revision
from services.router.waiting import within
from shoal.controller.v1 import controller_service_pb2 as wire

ANSWER_MARGIN: Final = 0.02  # seconds in which to tell the caller why, before its deadline
PATIENCE_SECONDS: Final = 30.0  # of requests without a deadline
RETRY_SECONDS: Final = 0.1
CONFIG_SECONDS: Final = 5.0
REPORT_SECONDS: Final = 60.0

_tracer = trace.get_tracer("shoal.router")


@dataclass(frozen=True, slots=True)
class Grant:
    """A replica that the Controller lets a request use. `address` is the server's host:port. For
    `revision`, see core.routing.table.Table.outdated."""

    replica: Replica
    address: str
    revision: Revision
    use_lease: str


class ResidencyClient:
    """Asks the Controller that `watch` follows, or the one that takes its place.

    `patience` is how long a cold request waits while no Controller acts, in seconds. None means
    until its deadline, or for `PATIENCE_SECONDS` without one."""

    def __init__(self, watch: PlacementWatch, patience: float | None = None) -> None:
        self._watch = watch
        self._patience = patience
        self._reports = TaskScope("the Router's reports")
        #: The reports under way: who called what.
        self._reported: set[tuple[Target, str]] = set()

    def close(self) -> None:
        self._reports.cancel()

    def report_call(self, target: Target, missed: Miss) -> None:
        """Tell the Controller what `target` called in vain, for the benefit of later requests."""
        if (target, missed.called) not in self._reported:
            self._reported.add((target, missed.called))
            self._reports.start(self._report(target, missed))

    async def _report(self, target: Target, missed: Miss) -> None:
        try:
            await self.make_resident(target, time.monotonic() + REPORT_SECONDS, missed)
        except (Rejected, ShoalError):
            pass  # a later request will find out
        finally:
            self._reported.discard((target, missed.called))

    async def make_resident(
        self, target: Target, deadline: float | None, missed: Miss | None
    ) -> Grant:
        """Return a replica that is READY, with a use lease.

        `deadline` is in seconds of the monotonic clock. Raises Rejected, ControllerUnavailable,
        DeadlineBeforeResident."""
        request = wire.MakeResidentRequest(
            model=target.model, version=target.version, router=self._watch.router
        )
        if missed is not None:
            request.missed.server = missed.server
            request.missed.model, request.missed.version = target
            request.called = missed.called
            if missed.unhealthy:
                request.missed_cause = wire.MISS_CAUSE_UNHEALTHY
        span: trace.Span = trace.INVALID_SPAN
        if trace.get_current_span().is_recording():
            span = _tracer.start_span("make_resident", kind=trace.SpanKind.CLIENT)
        with trace.use_span(span, end_on_exit=True):
            reply = await self._ask(request, target, deadline, telemetry.propagation(span))
        return Grant(
            replica_of(reply.replica),
            reply.address,
            Revision(reply.revision.epoch, reply.revision.number),
            reply.use_lease,
        )

    def require_lease(self, target: Target) -> None:
        """Raises NoLease if no Controller is heard from. A sequence must not begin then: a
        Controller that does not know about it could unload the model in the middle of it."""
        if self._watch.acting is None:
            raise NoLease(
                model=target.model, controller=self._watch.addresses, retry_after=RETRY_SECONDS
            )

    async def config(self, target: Target) -> wire.GetModelConfigResponse:
        """Return the config of a version. Raises Rejected, ControllerUnavailable."""
        request = wire.GetModelConfigRequest(model=target.model, version=target.version)
        deadline = time.monotonic() + CONFIG_SECONDS
        while (acting := self._watch.acting) is not None:
            call = acting.stub.GetModelConfig(request, timeout=deadline - time.monotonic())
            try:
                reply = await acting.call(call)
            except ControllerLost:
                continue
            except grpc.aio.AioRpcError as error:
                raise self._translated(error, target) from error
            assert isinstance(reply, wire.GetModelConfigResponse)
            return reply
        raise self._unavailable(target, NOBODY_ACTS)

    async def _ask(
        self,
        request: wire.MakeResidentRequest,
        target: Target,
        deadline: float | None,
        metadata: tuple[tuple[str, str], ...],
    ) -> wire.MakeResidentResponse:
        """Ask until a Controller answers, or patience or deadline run out."""
        began = time.monotonic()
        patience = self._patience
        if patience is None:
            patience = PATIENCE_SECONDS if deadline is None else math.inf
        away = Absence(patience)
        asked: ActingController | None = None
        while True:
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise _deadline_passed(target, began)
            acting = self._watch.acting
            if acting is None:
                if away.too_long():
                    raise self._unavailable(target, NOBODY_ACTS)
                if left <= ANSWER_MARGIN:
                    raise _deadline_passed(target, began)
                wait = min(away.left(), left - ANSWER_MARGIN)
                await within(wait, self._watch.found.wait())
                continue
            if acting is not asked:  # a Controller has been heard from since
                away, asked = Absence(patience), acting
            request.waited.FromNanoseconds(round((time.monotonic() - began) * 1e9))
            timeout = None if deadline is None else max(left - ANSWER_MARGIN, left / 2)
            call = acting.stub.MakeResident(
                request, timeout=timeout, metadata=(*metadata, WHOLE_ERRORS)
            )
            try:
                reply = await acting.call(call)
            except ControllerLost:
                continue
            except grpc.aio.AioRpcError as error:
                meaning = self._translated(error, target)
                if isinstance(meaning, Rejected):
                    if _is_own_timeout(error):
                        raise _deadline_passed(target, began) from error
                    raise meaning from error
                if away.too_long():
                    raise meaning from error
                await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))
            else:
                assert isinstance(reply, wire.MakeResidentResponse)
                return reply

    def _translated(
        self, error: grpc.aio.AioRpcError, target: Target
    ) -> Rejected | ControllerUnavailable:
        """Return what a failed call means."""
        info = error_info(tuple(error.trailing_metadata() or ()))
        gone = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        if gone and (info is None or info.reason in (NotReady.reason, StandsBy.reason)):
            return self._unavailable(target, error.details())
        return Rejected(error)

    def _unavailable(self, target: Target, cause: str | None) -> ControllerUnavailable:
        return ControllerUnavailable(
            model=target.model,
            controller=self._watch.addresses,
            cause=cause,
            retry_after=RETRY_SECONDS,
        )


class Absence:
    """Measures for how long there has been no Controller, against `patience` seconds."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._since: float | None = None

    def left(self) -> float:
        """Return the seconds of patience that are left. The first call starts the clock."""
        if self._since is None:
            self._since = time.monotonic()
        return self._since + self._patience - time.monotonic()

    def too_long(self) -> bool:
        """Return whether patience has run out."""
        return self.left() <= 0


def _is_own_timeout(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the Router's own timer ended the call, rather than the Controller."""
    return (
        error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        and error_info(tuple(error.trailing_metadata() or ())) is None
    )


def _deadline_passed(target: Target, began: float) -> DeadlineBeforeResident:
    return DeadlineBeforeResident(
        model=target.model,
        version=target.version,
        waited_seconds=f"{time.monotonic() - began:.2f}",
        stage="the Controller had not answered",
    )
