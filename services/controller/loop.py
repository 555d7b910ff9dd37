"""Carries the engine's instructions out and feeds it what came of them."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Final

from services.controller.catalog import Catalog, Learnt
from services.controller.core import events as ev
from services.controller.core.entities import Unit
from services.controller.core.residency import Engine
from services.controller.journal import Journal
from services.controller.placements import Placements
from services.controller.triton import Triton, TritonGone, TritonRefused

TICK_SECONDS: Final = 0.1
CALL_ATTEMPTS: Final = 5

Answer = ev.Granted | ev.Refused | ev.Evicted


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that one load or unload may take."""

    load: float
    unload: float


@dataclass
class Loop:
    """The engine and everything that it moves. All of it runs on one event loop, and `feed` does
    not yield, so what the engine decided is published before anything else happens.

    `verify`: looks at a server at once, and calls `server_lost` when it is. `measure`: feeds what
    its models take now, as far as it can be measured."""

    engine: Engine
    catalog: Catalog
    tritons: dict[str, Triton]
    placements: Placements
    journal: Journal
    tasks: asyncio.TaskGroup
    timeouts: Timeouts
    verify: Callable[[str], Awaitable[None]]
    measure: Callable[[str], Awaitable[None]]
    learned: asyncio.Queue[ev.Learned] = field(default_factory=asyncio.Queue)
    _waiters: dict[int, asyncio.Future[Answer]] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _work: dict[str, set[asyncio.Task[None]]] = field(default_factory=dict)

    def feed(self, event: ev.Event) -> None:
        for instruction in self.engine.handle(event, time.monotonic()):
            self._carry_out(instruction)

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
            self.feed(ev.Tick())

    def catalog_changed(self, models: Iterable[str]) -> None:
        concerned = frozenset(models)
        if concerned:
            self.feed(ev.CatalogChanged(concerned, self.catalog.specs(concerned)))

    def server_lost(self, server: str, reason: str, *, usable: bool = True) -> None:
        for task in self._work.pop(server, set()):
            task.cancel()
        self.feed(ev.ServerLost(server, reason, usable))

    def _carry_out(self, instruction: ev.Instruction) -> None:
        match instruction:
            case ev.Load():
                self._spawn(instruction.key.server, self._load(instruction))
            case ev.Unload():
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

    async def _load(self, order: ev.Load) -> None:
        triton, unit = self.tritons[order.key.server], order.key.unit
        began = time.monotonic()

        async def apply() -> None:
            await triton.apply(self._config(unit), order.versions, unit, self.timeouts.load)

        try:
            await self._through_breaks(order.key.server, apply)
        except TritonRefused as refusal:
            self.feed(ev.LoadFailedOnServer(order.key, order.attempt, str(refusal)))
        else:
            self.feed(ev.Loaded(order.key, order.attempt, time.monotonic() - began))
            await self.measure(order.key.server)

    async def _unload(self, order: ev.Unload) -> None:
        triton, unit = self.tritons[order.key.server], order.key.unit

        async def drop() -> None:
            await triton.drop(self._config(unit), order.versions, unit, self.timeouts.unload)

        await self.measure(order.key.server)
        try:
            await self._through_breaks(order.key.server, drop)
        except TritonRefused as refusal:
            reason = f"{unit} cannot be unloaded, restart the server: {refusal}"
            self.server_lost(order.key.server, reason, usable=False)
        else:
            self.feed(ev.Unloaded(order.key, order.attempt))

    async def _through_breaks(self, server: str, call: Callable[[], Awaitable[None]]) -> None:
        """Repeat a call that broke off while its server is there. When the server is lost, this
        task is cancelled: its replicas went with it."""
        for _ in range(CALL_ATTEMPTS):
            try:
                return await call()
            except TritonGone as gone:
                cause = str(gone)
                await self.verify(server)
        raise TritonRefused(f"the call broke off {CALL_ATTEMPTS} times: {cause}")

    def _config(self, unit: Unit) -> bytes:
        version = self.catalog.version(unit)
        return version.config if version is not None else b""
