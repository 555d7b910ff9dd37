"""The loop around the engine: events in, instructions carried out, their outcomes fed back."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Final

from services.controller.core import events as ev
from services.controller.core.residency import Engine
from services.controller.registry.catalogue import Catalogue, LearnedFootprint
from services.controller.registry.lease import Fence
from services.controller.registry.watch import FailedAt, Report, UsedAt
from services.controller.routers.placements import Placements
from services.controller.servers.changes import Changes
from services.controller.telemetry.journal import Journal

TICK_SECONDS: Final = 0.5  # between two ticks, when nothing becomes due earlier
MEASURE_AFTER_SECONDS: Final = 0.4
SOONEST_SECONDS: Final = 0.001  # the resolution of asyncio's clock

# Events that come again within a second, and so are dropped while the fence is closed.
PASSING: Final = (ev.Due, ev.Tick, ev.IndexSeen, ev.Measured, ev.QueuesSeen, ev.RouterUsed)

Answer = ev.Granted | ev.Refused | ev.Evicted
Question = ev.ResidentWanted | ev.EvictionWanted
Ask = Callable[[Callable[[int], Question]], Awaitable[Answer]]  # `EngineLoop.ask`


@dataclass
class EngineLoop:
    """The residency engine and everything that it moves.

    All of it runs in one asyncio event loop. `feed` never yields, so what the engine has decided is
    published before anything else can happen.
    """

    engine: Engine
    #: What the Registry says of the models, which the engine is told as specs.
    catalogue: Catalogue
    #: The table that Routers follow.
    placements: Placements
    journal: Journal
    #: The owner of every load and unload under way.
    tasks: asyncio.TaskGroup
    #: The hands that load and unload.
    changes: Changes
    #: Measures a server's models and feeds the result; None where nothing is measured.
    measure: Callable[[str], Awaitable[None]] | None = None
    #: While it is closed, events are held back and nothing is begun on a server.
    fence: Fence = field(default_factory=Fence)
    #: Footprints that are still to be reported to the Registry.
    learned: asyncio.Queue[Report] = field(default_factory=asyncio.Queue)
    _held: deque[ev.Event] = field(default_factory=deque)
    _waiters: dict[int, asyncio.Future[Answer]] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    #: Loads and unloads under way, by server.
    _work: dict[str, set[asyncio.Task[None]]] = field(default_factory=dict)
    _waking: asyncio.TimerHandle | None = None
    _wakes_at: float = 0.0

    def feed(self, event: ev.Event) -> None:
        """Have the engine react to `event`, and carry out what it decides."""
        if not self.fence.is_open():
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

    async def ask(self, question: Callable[[int], Question]) -> Answer:
        """Feed an event that is answered, and wait for the answer.

        `question` makes the event from the waiter's number. Cancelling the call withdraws it.
        """
        waiter = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = answer
        try:
            self.feed(question(waiter))
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

    def catalogue_changed(self, models: Iterable[str]) -> None:
        """Tell the engine what the catalogue says of `models` now."""
        concerned = frozenset(models)
        if concerned:
            self.feed(ev.CatalogueChanged(concerned, self.catalogue.specs(concerned)))

    def server_lost(self, server: str, reason: str, *, usable: bool = True) -> None:
        """Cancel all work on the server and tell the engine that it is lost."""
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
                self.catalogue.learned[instruction.unit] = LearnedFootprint(
                    instruction.config_digest,
                    instruction.memory,
                    instruction.load_seconds,
                    instruction.fingerprint,
                )
                self.learned.put_nowait(instruction)
            case ev.Used():
                self.learned.put_nowait(UsedAt(instruction, time.time() - instruction.idle))
            case ev.Failed():
                wait = instruction.failing.wait if instruction.failing is not None else 0.0
                self.learned.put_nowait(FailedAt(instruction, time.time() + wait))
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
        if self.measure is not None:
            # Not at once: reading the processes takes milliseconds of a core that the first
            # request, which has waited for the load, can use better.
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
        """Set the timer for when something of the engine's own becomes due."""
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
