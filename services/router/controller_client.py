"""Asking the Controller to make a version resident, and for what it knows of it."""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any, Final

import grpc
from opentelemetry import trace

from services.common import telemetry
from services.common.errors import ControllerUnavailable, DeadlineBeforeResident
from services.common.status import error_info
from services.router.core.routes import Replica, Target
from services.router.core.table import Revision
from services.router.placement_watch import replica_of
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import placement_pb2

ANSWER_MARGIN: Final = 0.02  # seconds kept so that the caller hears why before its deadline
RETRY_SECONDS: Final = 0.1
CONFIG_SECONDS: Final = 5.0

_tracer = trace.get_tracer("shoal.router")


@dataclass(frozen=True, slots=True)
class Grant:
    """`address`: host:port of the server. `revision`: see core.table.Table.outdated."""

    replica: Replica
    address: str
    revision: Revision
    use_lease: str


class Rejected(Exception):
    """The Controller answered with an error; it is the client's to see, as it is."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details())
        self.error = error


class ControllerClient:
    """`patience`: seconds that a cold request waits for a Controller that is away."""

    def __init__(self, stub: Any, address: str, router: str, patience: float) -> None:
        self._stub = stub
        self._address = address
        self._router = router
        self._patience = patience

    async def make_resident(
        self, target: Target, deadline: float | None, missed: Replica | None
    ) -> Grant:
        """A replica that is READY, and a use lease on it.

        `deadline`: seconds of the monotonic clock. Raises Rejected, ControllerUnavailable,
        DeadlineBeforeResident.
        """
        request = wire.MakeResidentRequest(
            model=target.model, version=target.version, router=self._router
        )
        if missed is not None:
            request.missed.CopyFrom(
                placement_pb2.ReplicaRef(
                    server=missed.server, model=target.model, version=target.version
                )
            )
        span: trace.Span = trace.INVALID_SPAN
        if trace.get_current_span().is_recording():
            span = _tracer.start_span("make_resident", kind=trace.SpanKind.CLIENT)
        with trace.use_span(span, end_on_exit=True):
            reply = await self._patiently(request, target, deadline, telemetry.propagation(span))
        return Grant(
            replica_of(reply.replica),
            reply.address,
            Revision(reply.revision.epoch, reply.revision.number),
            reply.use_lease,
        )

    async def config(self, target: Target) -> wire.GetModelConfigResponse:
        """Raises Rejected, ControllerUnavailable."""
        request = wire.GetModelConfigRequest(model=target.model, version=target.version)
        try:
            reply = await self._stub.GetModelConfig(request, timeout=CONFIG_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise self._meaning(error, target) from error
        assert isinstance(reply, wire.GetModelConfigResponse)
        return reply

    async def _patiently(
        self,
        request: wire.MakeResidentRequest,
        target: Target,
        deadline: float | None,
        metadata: tuple[tuple[str, str], ...],
    ) -> wire.MakeResidentResponse:
        began = time.monotonic()
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            try:
                if left is not None and left <= 0:
                    raise _too_late(target, began)
                timeout = None if left is None else max(left - ANSWER_MARGIN, left / 2)
                reply = await self._stub.MakeResident(request, timeout=timeout, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                meaning = self._meaning(error, target)
                if isinstance(meaning, Rejected):
                    if _timed_out(error):
                        raise _too_late(target, began) from error
                    raise meaning from error
                if time.monotonic() - began > self._patience:
                    raise meaning from error
                await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
            else:
                assert isinstance(reply, wire.MakeResidentResponse)
                return reply

    def _meaning(
        self, error: grpc.aio.AioRpcError, target: Target
    ) -> Rejected | ControllerUnavailable:
        gone = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        if gone and error_info(tuple(error.trailing_metadata() or ())) is None:
            return ControllerUnavailable(
                model=target.model,
                controller=self._address,
                cause=error.details(),
                retry_after=RETRY_SECONDS,
            )
        return Rejected(error)


def _timed_out(error: grpc.aio.AioRpcError) -> bool:
    """Whether it was our own timer, not the Controller's word."""
    return (
        error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        and error_info(tuple(error.trailing_metadata() or ())) is None
    )


def _too_late(target: Target, began: float) -> DeadlineBeforeResident:
    return DeadlineBeforeResident(
        model=target.model,
        version=target.version,
        waited_seconds=f"{time.monotonic() - began:.2f}",
        stage="the Controller had not answered",
    )
