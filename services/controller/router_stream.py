"""A Router's stream: placements to it; acks, drains and use back from it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from services.common.errors import InvalidField, NotReady, ShoalError
from services.common.rpc import Context
from services.controller import messages
from services.controller.core import events as ev
from services.controller.loop import Loop
from services.controller.placements import Subscriber
from shoal.controller.v1 import placement_pb2

CHECKPOINT_SECONDS: Final = 1.0

Heard = AsyncIterator[placement_pb2.WatchPlacementsRequest]


async def follow(loop: Loop, heard: Heard, context: Context) -> None:
    """Until the Router ends it. Raises ShoalError when the Router has to subscribe again."""
    first = await anext(heard, placement_pb2.WatchPlacementsRequest())
    subscribe = first.subscribe
    if not subscribe.router:
        raise InvalidField(field="message", problem="a stream begins with subscribe.router")
    if subscribe.known.epoch > loop.placements.epoch:
        loop.fence.overtaken()
    in_use = frozenset(map(messages.key, subscribe.in_use))
    loop.feed(ev.RouterJoined(subscribe.router, in_use))
    subscriber = loop.placements.subscribe(subscribe.known)
    try:
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(_send(loop, subscriber, context))
            async for message in heard:
                _hear(loop, subscribe.router, message, subscriber)
            sender.cancel()
    except* ShoalError as errors:
        raise errors.exceptions[0] from None
    finally:
        loop.placements.unsubscribe(subscriber)


async def _send(loop: Loop, subscriber: Subscriber, context: Context) -> None:
    while True:
        await loop.fence.passed()
        await context.write(loop.placements.next_message(subscriber))
        try:
            async with asyncio.timeout(CHECKPOINT_SECONDS):
                await subscriber.changed.wait()
        except TimeoutError:
            continue


def _hear(
    loop: Loop,
    router: str,
    message: placement_pb2.WatchPlacementsRequest,
    subscriber: Subscriber,
) -> None:
    if router not in loop.engine.fleet.withdrawals.routers:
        raise NotReady(
            service="the placement stream",
            cause=f"router {router} was not heard from for too long; subscribe again",
        )
    kind = message.WhichOneof("message")
    if kind == "ack" and loop.placements.current(message.ack.revision):
        loop.feed(ev.RouterAcked(router, message.ack.revision.number))
    elif kind == "nack":
        subscriber.restart()
    elif kind == "drained" and loop.placements.current(message.drained.revision):
        drained = message.drained
        replica = messages.key(drained.replica)
        loop.feed(ev.RouterDrained(router, replica, drained.revision.number))
    elif kind == "started":
        loop.feed(ev.RouterStarted(router, message.started.use_lease))
    elif kind == "usage":
        usage = {
            messages.key(row.replica): ev.Usage(
                row.age.ToTimedelta().total_seconds(), row.in_flight, row.requests, row.sequences
            )
            for row in message.usage.replicas
        }
        loop.feed(ev.RouterUsed(router, usage))
    elif kind == "broke":
        broke = message.broke
        earlier = messages.key(broke.earlier) if broke.HasField("earlier") else None
        loop.feed(ev.RouterBroke(router, messages.key(broke.replica), earlier, broke.repeated))
