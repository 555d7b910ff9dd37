"""Serves one HTTP route: its caller, deadline and span, and errors as replies."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog
from starlette.types import Receive, Scope, Send

from services.common.caller import LOCAL
from services.common.errors import NotReady, ShoalError
from services.router.admission.memory import Reservation
from services.router.call import RefusedByServers
from services.router.control.answers import Rejected
from services.router.core.errors import MemoryTaken, MessageTooLarge
from services.router.core.rest.values import WrongRequest
from services.router.rest.incoming import ClientGone, HttpRequest
from services.router.rest.reply import (
    TOO_LATE,
    HttpReply,
    end_body,
    error_reply,
    refused_reply,
    shoal_error_reply,
    status_reply,
)
from services.router.rest.service import Service
from services.router.servers.answers import TritonError
from services.router.telemetry import tracing
from services.router.waiting import within

RouteAction = Callable[[HttpRequest, Service], Awaitable[HttpReply]]

LINGER_SECONDS: Final = 2.0  # for the rest of a refused body to arrive
_CLOSE: Final = (b"connection", b"close")

_log = structlog.get_logger(__name__)


class EndpointRoute(Protocol):
    """A row of the table of routes. `early` says that it answers before the Router knows where
    models are."""

    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def action(self) -> RouteAction: ...
    @property
    def early(self) -> bool: ...


class Endpoint:
    """An ASGI application for one route. `path` has names in braces."""

    def __init__(self, path: str, route: EndpointRoute, service: Service) -> None:
        self._path = path
        head = ("HEAD",) * ("GET" in route.methods)
        self._methods = (*route.methods, *head)
        self._action = route.action
        self._early = route.early
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in self._methods:
            reply = error_reply(405, "Method Not Allowed")
            allow = (b"allow", ", ".join(self._methods).encode())
            await reply._replace(headers=(*reply.headers, allow)).send(send)
            return
        reservation = Reservation(self._service.memory_budget)
        try:
            incoming = HttpRequest(scope, receive, self._service.callers, reservation)
            if incoming.caller == LOCAL:
                self._service.browsers.check(incoming.method, incoming.headers)
        except WrongRequest as refused:
            await refused_reply(refused).send(send)
            return
        except ShoalError as error:
            await shoal_error_reply(error).send(send)
            return
        name = f"{incoming.method} {self._path}"
        try:
            with contextlib.suppress(ClientGone), tracing.server_span(name, incoming.metadata):
                await self._read_and_answer(incoming, send)
        finally:
            reservation.release()

    async def _read_and_answer(self, incoming: HttpRequest, send: Send) -> None:
        """Read the body and answer the request. Raises ClientGone."""
        refused: HttpReply | None = None
        try:
            async with asyncio.timeout(incoming.left()):
                await incoming.read(self._service.max_body)
        except (MessageTooLarge, MemoryTaken) as error:
            refused = shoal_error_reply(error)
        except TimeoutError:
            refused = refused_reply(TOO_LATE)
        if refused is None:
            await _unless_gone(self._answer(incoming, send), incoming)
        else:
            incoming.reservation.release()
            await _refuse_body(refused, incoming, send)

    async def _answer(self, incoming: HttpRequest, send: Send) -> None:
        try:
            async with asyncio.timeout(incoming.left()):
                reply = await self._reply(incoming)
        except TimeoutError:
            tracing.mark_failed(TOO_LATE.text)
            reply = refused_reply(TOO_LATE)
        await reply.send(send)

    async def _reply(self, incoming: HttpRequest) -> HttpReply:
        try:
            if not self._early and not self._service.watch.synchronized.is_set():
                cause = "it has not heard yet where models are"
                raise NotReady(service="the Router", cause=cause, retry_after=1.0)
            return await self._action(incoming, self._service)
        except WrongRequest as refused:
            tracing.mark_failed(refused.text)
            return refused_reply(refused)
        except ShoalError as error:
            tracing.mark_refused(error)
            return shoal_error_reply(error)
        except RefusedByServers as answered:
            tracing.mark_failed(answered.text)
            return refused_reply(WrongRequest(answered.code.name, answered.text))
        except (TritonError, Rejected) as passed:
            tracing.mark_failed(passed.error.details() or passed.error.code().name)
            return status_reply(passed.error)
        except Exception as error:
            _log.exception("request failed", path=self._path, exc_info=error)
            tracing.mark_failed(repr(error))
            return error_reply(
                500, f"{self._path} failed inside the Router: its log has the details"
            )


async def _refuse_body(reply: HttpReply, incoming: HttpRequest, send: Send) -> None:
    """Reply at once, and close the connection when the client has stopped sending. Closing it
    earlier would lose the reply."""
    reply = reply._replace(headers=(*reply.headers, _CLOSE))
    await reply.send(send, more=True)
    await within(LINGER_SECONDS, incoming.discard_rest())
    await end_body(send)


async def _unless_gone(work: Awaitable[None], incoming: HttpRequest) -> None:
    """Do the work, but cancel it and raise ClientGone if the client closes the connection
    before."""
    task = asyncio.current_task()
    assert task is not None

    async def watch() -> None:
        await incoming.until_gone()
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if watcher.done() and not watcher.cancelled():
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()
