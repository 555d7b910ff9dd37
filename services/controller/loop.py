"""Carries the engine's instructions out and feeds it what came of them."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Final

from services.controller.catalog import Catalog, Learnt
from services.controller.changes import Changes
from services.controller.core import events as ev
from services.controller.core.residency import Engine
from services.controller.journal import Journal
from services.controller.lease import Fence
from services.controller.placements import Placements

TICK_SECONDS: Final = 0.5  # between two looks when nothing becomes due
MEASURE_AFTER_SECONDS: Final = 0.4
SOONEST_SECONDS: Final = 0.001  # the event loop's own clock is no finer

# Seen again within a second: not kept while the fence is closed.
PASSING: Final = (ev.Due, ev.Tick, ev.IndexSeen, ev.Measured, ev.QueuesSeen, ev.RouterUsed)

Answer = ev.Granted | ev.Refused | ev.Evicted


@dataclass
class Loop:
    """The engine and everything that it moves. All of it runs on one event loop, and `feed` does
    not yield, so what the engine decided is published before anything else happens.

    `measure`: feeds what a server's models take now, as far as it can be measured. `fence`: while
    it is closed, events wait and nothing is begun on a server."""

    engine: Engine
    catalog: Catalog
    placements: Placements
    journal: Journal
    tasks: asyncio.TaskGroup
    changes: Changes
    measure: Callable[[str], Awaitable[None]]
    fence: Fence = field(default_factory=Fence)
    learned: asyncio.Queue[ev.Learned] = field(default_factory=asyncio.Queue)
    _held: deque[ev.Event] = field(default_factory=deque)
    _waiters: dict[int, asyncio.Future[Answer]] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _work: dict[str, set[asyncio.Task[None]]] = field(default_factory=dict)
    _waking: asyncio.TimerHandle | None = None
    _wakes_at: float = 0.0

    def feed(self, event: ev.Event) -> None:
        if not self.fence.open():
            if not isinstance(event, PASSING):
                self._held.append(event)
            return
        while self._held:
            self._handle(self._held.popleft())
        self._handle(event)

    def _handle(self, event: ev.Event) -> None:
        for instruction in self.engine.handle(event, time.monotonic()):
            self._carry_out(instruction)
        self._wake()

    async def ask(
        self, make: "type[ev.ResidentWanted] | type[ev.EvictionWanted]", **about: object
    ) -> Answer:
        """Feed an event that somebody waits for, and wait. Leaving early withdraws it."""
        waiter = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = answer
        try:
            self.feed(make(waiter=waiter, **about))  # type: ignore[arg-type]
            return await answer
        finally:
            del self._waiters[waiter]
            if answer.cancelled() or not answer.done():
                self.feed(ev.WaiterGone(waiter))

    async def tick(self) -> None:
        """Let time pass for the engine, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.feed(ev.Tick(time.time()))

    def catalog_changed(self, models: Iterable[str]) -> None:
        concerned = frozenset(models)
        if concerned:
            self.feed(ev.CatalogueChanged(concerned, self.catalog.specs(concerned)))

    def server_lost(self, server: str, reason: str, *, usable: bool = True) -> None:
        for task in self._work.pop(server, set()):
            task.cancel()
        self.feed(ev.ServerLost(server, reason, usable))

    def _carry_out(self, instruction: ev.Instruction) -> None:
        match instruction:
            case ev.Load() | ev.Settle(loading=True):
                self._spawn(instruction.key.server, self._load(instruction))
            case ev.Unload() | ev.Settle():
                self._spawn(instruction.key.server, self._unload(instruction))
            case ev.Granted() | ev.Refused() | ev.Evicted():
                answer = self._waiters.get(instruction.waiter)
                if answer is not None and not answer.done():
                    answer.set_result(instruction)
            case ev.Publish():
                self.placements.mark(instruction.models, instruction.servers)
            case ev.Learned():
                self.catalog.learnt[instruction.unit] = Learnt(
                    instruction.config_digest, instruction.memory, instruction.load_seconds
                )
                self.learned.put_nowait(instruction)
            case ev.Record():
                self.journal.add(instruction)

    def _spawn(self, server: str, work: Coroutine[None, None, None]) -> None:
        task = self.tasks.create_task(work)
        self._work.setdefault(server, set()).add(task)
        task.add_done_callback(lambda done: self._work.get(server, set()).discard(done))

    async def _load(self, order: ev.Load | ev.Settle) -> None:
        change = (
            self.changes.load(order) if isinstance(order, ev.Load) else self.changes.settle(order)
        )
        self.feed(await change)
        # Not at once: reading the processes takes milliseconds of a core that the first request,
        # which has waited for the load, can use better.
        await asyncio.sleep(MEASURE_AFTER_SECONDS)
        await self.measure(order.key.server)

    async def _unload(self, order: ev.Unload | ev.Settle) -> None:
        change = (
            self.changes.unload(order)
            if isinstance(order, ev.Unload)
            else self.changes.settle(order)
        )
        self.feed(await change)

    def _wake(self) -> None:
        """Have the engine looked at when something of its own becomes due."""
        due = self.engine.next_wake()
        if due is None or (self._waking is not None and self._wakes_at <= due):
            return
        if self._waking is not None:
            self._waking.cancel()
        wait = max(SOONEST_SECONDS, due - time.monotonic())
        self._wakes_at = due
        self._waking = asyncio.get_running_loop().call_later(wait, self._woken)

    def _woken(self) -> None:
        self._waking = None
        self.feed(ev.Due())
