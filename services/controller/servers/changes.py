"""Loads and unloads on the servers, each followed to its end, which becomes an event."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import structlog

from services.controller.core import events as ev
from services.controller.core.entities import ReplicaKey, Unit
from services.controller.measurement.processes import Processes
from services.controller.registry.catalogue import Catalogue
from services.controller.registry.lease import Fence
from services.controller.telemetry.metrics import LOAD_SECONDS
from services.controller.triton.client import (
    READY,
    SOON_SECONDS,
    UNLOADED,
    Deadline,
    Triton,
    TritonGone,
    TritonRefused,
    TritonSlow,
)
from services.controller.triton.config import decoupled

CALL_ATTEMPTS: Final = 5

# A unit's processes end milliseconds after Triton has said that the unit is gone.
PROCESS_SECONDS: Final = 5.0
# A unit that is still UNLOADING so long after its processes have ended stays so for ever.
STUCK_SECONDS: Final = 2.0

Outcome = ev.Loaded | ev.LoadFailedOnServer | ev.LoadHung | ev.Unloaded | ev.UnloadHung
T = TypeVar("T")

_log = structlog.get_logger(__name__)


async def _nothing(key: ReplicaKey) -> None:
    """Do nothing."""


async def no_problem(unit: Unit) -> str:
    """Let every unit be loaded."""
    return ""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The seconds that one load, unload or probe may take."""

    load: float
    unload: float
    probe: float = 30.0


@dataclass(frozen=True, slots=True)
class Changes:
    """The hands that load and unload.

    `verify`: looks at a server at once, and cancels what is under way there when it is lost.
    `fence`: nothing is begun while it is closed. `source_problem`: asked before each load, with the
    reason why nothing must be loaded, or "". `before_load`, `before_unload`: called before a unit
    is loaded or unloaded; `after_probe`: once it has answered its probe, before anybody else asks
    it.
    """

    tritons: Mapping[str, Triton]
    catalogue: Catalogue
    processes: Processes
    timeouts: Timeouts
    verify: Callable[[str], Awaitable[None]]
    fence: Fence = field(default_factory=Fence)
    source_problem: Callable[[Unit], Awaitable[str]] = no_problem
    before_load: Callable[[ReplicaKey], None] = lambda key: None
    before_unload: Callable[[ReplicaKey], Awaitable[None]] = _nothing
    after_probe: Callable[[ReplicaKey], Awaitable[None]] = _nothing

    async def load(self, order: ev.Load) -> Outcome:
        triton, unit = self.tritons[order.key.server], order.key.unit
        if problem := await self.source_problem(unit):
            return ev.LoadFailedOnServer(order.key, order.attempt, problem)
        self.before_load(order.key)

        async def apply() -> None:
            await triton.apply(self._config(unit), order.versions, unit, self.timeouts.load)

        return await self._loaded(order, apply)

    async def unload(self, order: ev.Unload) -> Outcome:
        await self.before_unload(order.key)
        return await self._unloaded(order, lambda: self._drop(order.key, order.versions))

    async def settle(self, order: ev.Settle) -> Outcome:
        """Follow a load or an unload that somebody else has begun."""
        if order.loading:
            return await self._loaded(order, lambda: self._settle_load(order.key))
        return await self._unloaded(order, lambda: self._settle_unload(order.key))

    # --- to READY ---------------------------------------------------------------------------------

    async def _loaded(
        self, order: ev.Load | ev.Settle, load: Callable[[], Awaitable[None]]
    ) -> Outcome:
        key, began = order.key, time.monotonic()
        outcome: Outcome
        try:
            await self._through_breaks(key.server, load)
            await self._probe(key)
        except TritonRefused as refusal:
            undone = str(refusal) == UNLOADED
            outcome = ev.LoadFailedOnServer(key, order.attempt, str(refusal), undone)
        except TritonSlow as slow:
            outcome = ev.LoadHung(key, order.attempt, str(slow))
        else:
            seconds = time.monotonic() - began
            if isinstance(order, ev.Settle):  # it began earlier, at an unknown time
                seconds = max(seconds, self._learned_seconds(key.unit))
            outcome = ev.Loaded(key, order.attempt, seconds)
        if isinstance(order, ev.Load):
            labels = {ev.Loaded: "ready", ev.LoadFailedOnServer: "failed", ev.LoadHung: "hung"}
            LOAD_SECONDS.labels(labels[type(outcome)]).observe(time.monotonic() - began)
        return outcome

    async def _settle_load(self, key: ReplicaKey) -> None:
        triton, deadline = self.tritons[key.server], Deadline.within(self.timeouts.load)
        state, reason = await triton.settled(key.unit, deadline)
        if state != READY:
            raise TritonRefused(reason or f"{key.unit} is {state or 'not in the index'}")

    async def _probe(self, key: ReplicaKey) -> None:
        """Send a unit that has become READY its probe, and unload it where it does not answer."""
        version = self.catalogue.version(key.unit)
        if version is None or not version.probe or decoupled(version.config):
            return
        triton, probe = self.tritons[key.server], version.probe
        try:
            await self._through_breaks(
                key.server, lambda: triton.probe(key.unit, probe, self.timeouts.probe)
            )
        except TritonRefused as refusal:
            await self._unload_unanswering(key, str(refusal))
            raise
        await self.after_probe(key)

    async def _unload_unanswering(self, key: ReplicaKey, why: str) -> None:
        """Unload a unit that did not answer its probe.

        Raises TritonSlow when the unit stays, and with it its memory.
        """

        async def unload() -> None:
            await self._drop(key, await self._other_versions(key))

        try:
            await self._through_breaks(key.server, unload)
        except (TritonRefused, TritonSlow) as stuck:
            raise TritonSlow(f"{why}; and it cannot be unloaded: {stuck}") from stuck

    # --- from READY -------------------------------------------------------------------------------

    async def _unloaded(
        self, order: ev.Unload | ev.Settle, unload: Callable[[], Awaitable[None]]
    ) -> Outcome:
        try:
            await self._through_breaks(order.key.server, unload)
        except (TritonRefused, TritonSlow) as problem:
            return ev.UnloadHung(order.key, order.attempt, str(problem))
        return ev.Unloaded(order.key, order.attempt)

    async def _drop(self, key: ReplicaKey, versions: tuple[int, ...]) -> None:
        triton = self.tritons[key.server]
        config, timeout = self._config(key.unit), self.timeouts.unload
        if not self.processes.alive(key.server, key.unit):
            await self.processes.identify(key.server)  # it may have started since the last look
        lives = partial(self.processes.alive, key.server, key.unit)
        await triton.drop(config, versions, key.unit, timeout, self._stuck(key), lives)
        await self._until_memory_is_back(key)

    async def _settle_unload(self, key: ReplicaKey) -> None:
        triton, deadline = self.tritons[key.server], Deadline.within(self.timeouts.unload)
        await self.processes.look(key.server)
        state, _ = await triton.settled(key.unit, deadline, self._stuck(key))
        if state == READY:  # it was loaded again
            await self._drop(key, await self._other_versions(key))
        else:
            await self._until_memory_is_back(key)

    def _stuck(self, key: ReplicaKey) -> Callable[[], bool]:
        """Return a function that says whether the unit stays UNLOADING though its memory is back.

        Triton waits for ever for the answer of a process that died under a request. Such a unit can
        be loaded again.
        """
        since: float | None = None

        def stuck() -> bool:
            nonlocal since
            if not self.processes.ended(key.server, key.unit):
                since = None
                return False
            now = time.monotonic()
            since = now if since is None else since
            if now - since < STUCK_SECONDS:
                return False
            _log.warning("stuck in UNLOADING though its processes have ended", replica=str(key))
            return True

        return stuck

    async def _until_memory_is_back(self, key: ReplicaKey) -> None:
        deadline = Deadline.within(PROCESS_SECONDS)
        while self.processes.alive(key.server, key.unit):
            if not deadline.left:
                _log.warning("unloaded, but its processes are still there", replica=str(key))
                break
            await asyncio.sleep(SOON_SECONDS)
        self.processes.forget(key.server, key.unit)

    # --- both -------------------------------------------------------------------------------------

    async def _other_versions(self, key: ReplicaKey) -> tuple[int, ...]:
        """Return the other versions of the model that are READY on the server."""
        index = await self.tritons[key.server].index()
        return tuple(
            sorted(
                unit.version
                for unit, (state, _) in index.items()
                if state == READY and unit.model == key.unit.model and unit != key.unit
            )
        )

    async def _through_breaks(self, server: str, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call, and repeat it when it breaks off though its server is still there.

        When the server is lost, this task is cancelled, for the replicas are lost with it. Raises
        TritonSlow when repeating does not help: what became of the call is not known.
        """
        for _ in range(CALL_ATTEMPTS):
            await self.fence.wait_open()
            try:
                return await call()
            except TritonGone as gone:
                cause = str(gone)
                await self.verify(server)
        raise TritonSlow(f"the call broke off {CALL_ATTEMPTS} times: {cause}")

    def _learned_seconds(self, unit: Unit) -> float:
        learned = self.catalogue.learned.get(unit)
        return (learned.load_seconds if learned is not None else None) or 0.0

    def _config(self, unit: Unit) -> bytes:
        version = self.catalogue.version(unit)
        return version.config if version is not None else b""
