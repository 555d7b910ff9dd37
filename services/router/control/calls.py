"""Calls that the Controller answers for administrators and for statistics."""

import asyncio
import time
from typing import Any, Final

import grpc

from services.common.errors import NotReady, StandsBy
from services.common.status import error_info
from services.router.control.answers import NOBODY, Rejected
from services.router.control.leader import Lost
from services.router.control.placement_watch import PlacementWatch
from services.router.core.errors import NoController

PATIENCE_SECONDS: Final = 5.0  # while no Controller acts


class ControllerCalls:
    """Asks the Controller that `watch` follows; when another one takes its place, that one."""

    def __init__(self, watch: PlacementWatch) -> None:
        self._watch = watch

    async def ask(self, method: str, request: Any, deadline: float | None) -> Any:
        """The answer of ControllerService/`method`, which has to be one that may be repeated.

        `deadline`: seconds of the monotonic clock, None for none. Raises Rejected, NoController.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            acting = self._watch.acting
            if acting is None:
                await self._found(method, until, deadline)
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return await acting.call(getattr(acting.stub, method)(request, timeout=left))
            except Lost:
                continue
            except grpc.aio.AioRpcError as error:
                info = error_info(tuple(error.trailing_metadata() or ()))
                away = error.code() is grpc.StatusCode.UNAVAILABLE
                if away and (info is None or info.reason in (NotReady.reason, StandsBy.reason)):
                    raise self._nobody(method, error.details()) from error
                raise Rejected(error) from error

    async def _found(self, method: str, until: float, deadline: float | None) -> None:
        """Raises NoController when none is heard from in time."""
        if deadline is not None:
            until = min(until, deadline)
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._watch.found.wait()
        except TimeoutError:
            raise self._nobody(method, NOBODY) from None

    def _nobody(self, method: str, cause: str | None) -> NoController:
        return NoController(
            controller=self._watch.addresses, cause=cause, call=method, retry_after=1.0
        )
