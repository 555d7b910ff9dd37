"""From ASGI to a behaviour and back: one caller, one deadline, one span, one kind of error."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog
from starlette.types import Receive, Scope, Send

from services.common.errors import NotReady, ShoalError
from services.router.admission.memory import Holding
from services.router.call import RefusedByServers
from services.router.control.answers import Rejected
from services.router.core.errors import MemoryTaken, MessageTooLarge
from services.router.core.rest.values import WrongRequest
from services.router.rest.incoming import Gone, Incoming
from services.router.rest.reply import (
    TOO_LATE,
    HttpReply,
    finish,
    of_call,
    of_error,
    of_refused,
    said,
)
from services.router.rest.service import Service
from services.router.servers.answers import TritonError
from services.router.telemetry import tracing

RouteAction = Callable[[Incoming, Service], Awaitable[HttpReply]]

LINGER_SECONDS: Final = 2.0  # in which the rest of a refused body may still come
_CLOSE: Final = (b"connection", b"close")

_log = structlog.get_logger(__name__)


class Asks(Protocol):
    """A row of the table of routes. `early`: it answers before it is known where models are."""

    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def behaviour(self) -> RouteAction: ...
    @property
    def early(self) -> bool: ...


class Endpoint:
    """An ASGI application for one route. `path`: with names in braces."""

    def __init__(self, path: str, route: Asks, service: Service) -> None:
        self._path = path
        self._methods = route.methods
        self._behaviour = route.behaviour
        self._early = route.early
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in self._methods:
            await said(405, "Method Not Allowed").send(send)
            return
        holding = Holding(self._service.held)
        try:
            incoming = Incoming(scope, receive, self._service.callers, holding)
        except WrongRequest as refused:
            await of_refused(refused).send(send)
            return
        name = f"{incoming.method} {self._path}"
        try:
            with contextlib.suppress(Gone), tracing.serving(name, incoming.metadata):
                await self._take(incoming, send)
        finally:
            holding.release()

    async def _take(self, incoming: Incoming, send: Send) -> None:
        """Raises Gone."""
        refused: HttpReply | None = None
        try:
            async with asyncio.timeout(incoming.left()):
                await incoming.read(self._service.max_body)
        except (MessageTooLarge, MemoryTaken) as error:
            refused = of_error(error)
        except TimeoutError:
            refused = of_refused(TOO_LATE)
        if refused is None:
            await _unless_gone(self._answer(incoming, send), incoming)
        else:
            incoming.holding.release()
            await _refuse_body(refused, incoming, send)

    async def _answer(self, incoming: Incoming, send: Send) -> None:
        try:
            async with asyncio.timeout(incoming.left()):
                reply = await self._reply(incoming)
        except TimeoutError:
            tracing.failed(TOO_LATE.text)
            reply = of_refused(TOO_LATE)
        await reply.send(send)

    async def _reply(self, incoming: Incoming) -> HttpReply:
        try:
            if not self._early and not self._service.watch.synchronized.is_set():
                cause = "it has not heard yet where models are"
                raise NotReady(service="the Router", cause=cause, retry_after=1.0)
            return await self._behaviour(incoming, self._service)
        except WrongRequest as refused:
            tracing.failed(refused.text)
            return of_refused(refused)
        except ShoalError as error:
            tracing.refused(error)
            return of_error(error)
        except RefusedByServers as answered:
            tracing.failed(answered.text)
            return of_refused(WrongRequest(answered.code.name, answered.text))
        except (TritonError, Rejected) as passed:
            tracing.failed(passed.error.details() or passed.error.code().name)
            return of_call(passed.error)
        except Exception as error:
            _log.exception("request failed", path=self._path, exc_info=error)
            tracing.failed(repr(error))
            return said(500, f"{self._path} failed inside the Router: its log has the details")


async def _refuse_body(reply: HttpReply, incoming: Incoming, send: Send) -> None:
    """Answer at once, and close when the client has stopped sending: a connection that is closed
    before takes the answer with it."""
    reply = reply._replace(headers=(*reply.headers, _CLOSE))
    await reply.send(send, more=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            await incoming.skip()
    await finish(send)


async def _unless_gone(work: Awaitable[None], incoming: Incoming) -> None:
    """Raises Gone, with the work cancelled, when the client closes the connection before."""
    task = asyncio.current_task()
    assert task is not None

    async def watch() -> None:
        await incoming.gone()
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if watcher.done() and not watcher.cancelled():
            task.uncancel()
            raise Gone from None
        raise
    finally:
        watcher.cancel()
