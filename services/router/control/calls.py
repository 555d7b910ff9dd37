"""Calls that the Controller answers for administrators and for statistics."""

import time
from typing import Any, Final

import grpc

from services.common.errors import NotReady, StandsBy
from services.common.status import WHOLE_ERRORS, error_info
from services.router.control.answers import NOBODY_ACTS, Rejected
from services.router.control.leader import ControllerLost
from services.router.control.placement_watch import PlacementWatch
from services.router.core.errors import NoController
from services.router.waiting import within

PATIENCE_SECONDS: Final = 5.0  # while no Controller acts


class ControllerCalls:
    """Asks the Controller that `watch` follows, or the one that takes its place."""

    def __init__(self, watch: PlacementWatch) -> None:
        self._watch = watch

    async def ask(self, method: str, request: Any, deadline: float | None) -> Any:
        """Return the answer to ControllerService/`method`, which has to be safe to repeat.

        `deadline` is in seconds of the monotonic clock, or None. Raises Rejected, NoController."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            acting = self._watch.acting
            if acting is None:
                await self._wait_for_controller(method, until, deadline)
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            call = getattr(acting.stub, method)
            try:
                return await acting.call(call(request, timeout=left, metadata=(WHOLE_ERRORS,)))
            except ControllerLost:
                continue
            except grpc.aio.AioRpcError as error:
                info = error_info(tuple(error.trailing_metadata() or ()))
                away = error.code() is grpc.StatusCode.UNAVAILABLE
                if away and (info is None or info.reason in (NotReady.reason, StandsBy.reason)):
                    raise self._no_controller(method, error.details()) from error
                raise Rejected(error) from error

    async def _wait_for_controller(self, method: str, until: float, deadline: float | None) -> None:
        """Raises NoController if none is heard from in time."""
        if deadline is not None:
            until = min(until, deadline)
        if not await within(max(0.0, until - time.monotonic()), self._watch.found.wait()):
            raise self._no_controller(method, NOBODY_ACTS)

    def _no_controller(self, method: str, cause: str | None) -> NoController:
        return NoController(
            controller=self._watch.addresses, cause=cause, call=method, retry_after=1.0
        )
