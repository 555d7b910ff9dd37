"""The right to act: a lease of the Registry's, and the fence that keeps to it.

Triton takes calls from anybody, whatever epoch they are of. So it is the holder itself that must
not act once its lease may be another's, also when it was stopped for a while and did not notice.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from prometheus_client import Counter, Gauge

from services.common.status import error_info
from shoal.registry.v1 import registry_service_pb2 as wire

CALL_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.5
RELEASE_SECONDS: Final = 0.5
MARGIN: Final = 0.2  # of the ttl: what is begun before the end is with the servers before the end
PAUSE: Final = 0.5  # of the ttl; a process that runs looks at its lease more often

ACTING: Final = Gauge("shoal_controller_acting", "1 when this Controller acts, 0 on standby.")
EPOCH: Final = Gauge("shoal_controller_epoch", "The epoch in which it acts; 0: none yet.")
DOUBTS: Final = Counter(
    "shoal_controller_lease_doubts",
    "Times that it stopped acting until the Registry had said whose the lease is.",
)

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the first is Linux's alone

_log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """Another Controller acts now."""


def boot_seconds() -> float:
    """A clock that goes on while the process is stopped and, unlike the monotonic one, while the
    machine is suspended. (Neither sees a virtual machine that its host has paused.)"""
    return time.clock_gettime(_CLOCK)


class Fence:
    """Whether its Controller may act now. Without a ttl it always may.

    `open` up to a margin before the lease ends. Beyond, only while the Registry cannot be asked
    and the process has not paused: it then knows of no answer that it has missed. Once closed, it
    opens with the Registry's next answer alone.

    `ttl`: seconds. `clock`: seconds that only grow.
    """

    def __init__(self, ttl: float = math.inf, clock: Callable[[], float] = boot_seconds) -> None:
        self._ttl = ttl
        self._clock = clock
        self._until = clock() + ttl * (1 - MARGIN)
        self._seen = clock()
        self._registry_away = False
        self._opened = asyncio.Event()
        self._opened.set()

    def open(self) -> bool:
        now = self._clock()
        paused = now - self._seen > self._ttl * PAUSE
        self._seen = now
        if now >= self._until and (paused or not self._registry_away):
            self._close()
        return self._opened.is_set()

    def overtaken(self) -> None:
        """A Router knows of a later epoch: while the Registry cannot be asked, that counts."""
        if self._registry_away:
            self._close()

    def _close(self) -> None:
        if self._opened.is_set():
            self._opened.clear()
            DOUBTS.inc()
            _log.warning("nothing is done until the registry says who acts")

    async def passed(self) -> None:
        """Return once it is open."""
        while not self.open():
            await self._opened.wait()

    def granted(self, asked: float) -> None:
        """The Registry has given the lease, for a question of the moment `asked`."""
        self._until = asked + self._ttl * (1 - MARGIN)
        self._registry_away = False
        if self._clock() < self._until:
            self._opened.set()

    def unanswered(self) -> None:
        """The Registry could not be asked."""
        self.open()
        self._registry_away = True


class Lease:
    """`holder`: the name that it is asked for under; `held_by`: who has it, empty where that is not
    known; `waits_for`: why this one does not act, in words. `ttl`: seconds."""

    def __init__(self, stub: Any, holder: str, incarnation: str, ttl: float) -> None:
        self._stub = stub
        self._ttl = ttl
        self._request = wire.HoldControllerLeaseRequest(holder=holder, incarnation=incarnation)
        ttl_message = Duration()
        ttl_message.FromMilliseconds(round(ttl * 1000))
        self._request.ttl.CopyFrom(ttl_message)
        self._epoch = 0
        self.holder = holder
        self.held_by = ""
        self.waits_for = "it has just been started"

    async def acquire(self) -> tuple[int, Fence]:
        """The epoch, and the fence to act behind, once nobody else holds the lease."""
        while True:
            asked = boot_seconds()
            try:
                reply = await self._stub.HoldControllerLease(self._request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                self._told(error)
                await asyncio.sleep(min(RETRY_SECONDS, self._ttl / 4))
            else:
                self.held_by = self.holder
                self._epoch = int(reply.epoch)
                fence = Fence(self._ttl)
                fence.granted(asked)
                return self._epoch, fence

    async def keep(self, fence: Fence) -> None:
        """Renew for ever. Raises LeaseLost when another holder has it, or had it meanwhile."""
        answer_within = min(CALL_SECONDS, self._ttl / 3)
        pause = self._ttl / 3
        while True:
            await asyncio.sleep(pause)
            asked = boot_seconds()
            fence.open()
            try:
                reply = await self._stub.HoldControllerLease(self._request, timeout=answer_within)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.ABORTED:
                    raise LeaseLost(error.details()) from error
                fence.unanswered()
                pause = min(RETRY_SECONDS, self._ttl / 4)
            else:
                # One more: it had run out, and nobody else was given it in between.
                if reply.epoch not in (self._epoch, self._epoch + 1):
                    raise LeaseLost(f"others acted since epoch {self._epoch}, it is {reply.epoch}")
                self._epoch = reply.epoch
                fence.granted(asked)
                pause = self._ttl / 3

    async def release(self) -> None:
        """Let the next one act at once, where this one did; nothing must be begun any more."""
        if not self._epoch:
            return
        self._request.ttl.FromMilliseconds(1)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._stub.HoldControllerLease(self._request, timeout=RELEASE_SECONDS)

    def _told(self, error: grpc.aio.AioRpcError) -> None:
        before = self.held_by, self.waits_for
        info = error_info(tuple(error.trailing_metadata() or ()))
        self.held_by = info.metadata.get("holder", "") if info is not None else ""
        self.waits_for = (
            f"{self.held_by} has the controller lease and acts, this one stands by"
            if self.held_by
            else f"the Registry does not say who has the controller lease: {error.details()}"
        )
        if before != (self.held_by, self.waits_for):
            _log.info("standing by", cause=self.waits_for)
