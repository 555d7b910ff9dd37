"""The streams of Routers: placements to them; acks, drains and use back from them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from services.common.errors import InvalidField, NotReady, ShoalError
from services.common.rpc import Context
from services.controller.core import events as ev
from services.controller.core.view import FleetView
from services.controller.registry.lease import Fence
from services.controller.routers import messages
from services.controller.routers.placements import Placements, Subscriber
from shoal.controller.v1 import placement_pb2

CHECKPOINT_SECONDS: Final = 1.0

Heard = AsyncIterator[placement_pb2.WatchPlacementsRequest]


class RouterStreams:
    """The streams of all Routers.

    `fence`: while it is closed, nothing is sent, since another Controller may have the table.
    `recorded`: awaited before a Router gets its table, so that a successor will know of it.
    """

    def __init__(
        self,
        view: FleetView,
        placements: Placements,
        *,
        feed: Callable[[ev.Event], None],
        fence: Fence,
        recorded: Callable[[str], Awaitable[None]],
    ) -> None:
        self._view = view
        self._placements = placements
        self._feed = feed
        self._fence = fence
        self._recorded = recorded

    async def serve(self, heard: Heard, context: Context) -> None:
        """Serve one Router until it ends the stream.

        Raises a ShoalError when the Router has to subscribe again.
        """
        first = await anext(heard, placement_pb2.WatchPlacementsRequest())
        subscribe = first.subscribe
        if not subscribe.router:
            raise InvalidField(field="message", problem="a stream begins with subscribe.router")
        if subscribe.known.epoch > self._placements.epoch:
            self._fence.overtaken()
        in_use = frozenset(map(messages.replica_key, subscribe.in_use))
        self._feed(ev.RouterJoined(subscribe.router, in_use))
        subscriber = self._placements.subscribe(subscribe.known)
        try:
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(self._send(subscribe.router, subscriber, context))
                async for message in heard:
                    self._receive(subscribe.router, message, subscriber)
                sender.cancel()
        except* ShoalError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._placements.unsubscribe(subscriber)

    async def _send(self, router: str, subscriber: Subscriber, context: Context) -> None:
        await self._recorded(router)
        while True:
            await self._fence.wait_open()
            await context.write(self._placements.next_message(subscriber))
            try:
                async with asyncio.timeout(CHECKPOINT_SECONDS):
                    await subscriber.changed.wait()
            except TimeoutError:
                continue

    def _receive(
        self, router: str, message: placement_pb2.WatchPlacementsRequest, subscriber: Subscriber
    ) -> None:
        if not self._view.follows(router):
            raise NotReady(
                service="the placement stream",
                cause=f"router {router} was not heard from for too long; subscribe again",
            )
        if message.HasField("nack"):
            subscriber.restart()
            return
        event = messages.event(router, message, self._placements.epoch)
        if event is not None:
            self._feed(event)
