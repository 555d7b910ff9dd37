"""The right to act: a lease that the Registry gives, and the fence that guards it.

Triton takes calls from any Controller, whatever its epoch. So the holder itself must not act once
its lease may be another's, even when its process was stopped for a while and did not notice.
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
from services.controller.registry.followers import Followers
from shoal.registry.v1 import registry_service_pb2 as wire

CALL_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.5
RELEASE_SECONDS: Final = 0.5
MARGIN: Final = 0.2  # of the ttl: calls begun earlier reach the servers before the lease ends
PAUSE: Final = 0.5  # of the ttl: a process that runs looks at its lease more often than this

ACTING: Final = Gauge("shoal_controller_acting", "1 when this Controller acts, 0 on standby.")
EPOCH: Final = Gauge(
    "shoal_controller_epoch", "The epoch in which this Controller acts; 0: none yet."
)
DOUBTS: Final = Counter(
    "shoal_controller_lease_doubts",
    "How often this Controller stopped acting until the Registry said whose the lease is.",
)

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the former on Linux only

_log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """Another Controller acts now."""


def boot_seconds() -> float:
    """Return the seconds of a clock that goes on while the process is stopped.

    Unlike the monotonic clock, it also goes on while the machine is suspended. Neither notices that
    a virtual machine was paused by its host.
    """
    return time.clock_gettime(_CLOCK)


class Fence:
    """The guard that says whether a Controller may act at this moment.

    It is open until a margin before the lease ends. After that it stays open only while the
    Registry cannot be asked and the process has not paused, for then no answer was missed. Once
    closed, nothing but the Registry's next answer opens it.

    `ttl`: seconds that a lease lasts; without one, the fence is always open. `clock`: returns
    seconds that never go back.
    """

    def __init__(self, ttl: float = math.inf, clock: Callable[[], float] = boot_seconds) -> None:
        self._ttl = ttl
        self._clock = clock
        self._until = clock() + ttl * (1 - MARGIN)
        self._seen = clock()
        self._registry_away = False
        self._opened = asyncio.Event()
        self._opened.set()

    def is_open(self) -> bool:
        """Return whether the Controller may act now."""
        self.look()
        return self._opened.is_set()

    def look(self) -> None:
        """Look at the clock, and close where the lease may have ended or a pause hid an answer."""
        now = self._clock()
        paused = now - self._seen > self._ttl * PAUSE
        self._seen = now
        if now >= self._until and (paused or not self._registry_away):
            self._close()

    def overtaken(self) -> None:
        """Note that a Router knows a later epoch: it counts while the Registry is away."""
        if self._registry_away:
            self._close()

    def _close(self) -> None:
        if self._opened.is_set():
            self._opened.clear()
            DOUBTS.inc()
            _log.warning("nothing is done until the registry says who acts")

    async def wait_open(self) -> None:
        """Return once the fence is open."""
        while not self.is_open():
            await self._opened.wait()

    def granted(self, asked: float) -> None:
        """Note that the Registry has given the lease, in answer to a question asked at `asked`."""
        self._until = asked + self._ttl * (1 - MARGIN)
        self._registry_away = False
        if self._clock() < self._until:
            self._opened.set()

    def unanswered(self) -> None:
        """Note that the Registry could not be asked."""
        self.look()
        self._registry_away = True


class Lease:
    """The Controllers' lease, as one of them asks for it.

    `holder`: the name of the one that asks; `incarnation`: a name of its process alone. `ttl`:
    seconds. `held_by`: who has the lease, empty where that is not known; `waits_for`: why this one
    does not act, in words. `followers`: the Routers that are kept with the lease.
    """

    def __init__(self, stub: Any, holder: str, incarnation: str, ttl: float) -> None:
        self._stub = stub
        self._ttl = ttl
        self._answer_seconds = min(CALL_SECONDS, ttl / 3)
        self._request = wire.HoldControllerLeaseRequest(holder=holder, incarnation=incarnation)
        ttl_message = Duration()
        ttl_message.FromMilliseconds(round(ttl * 1000))
        self._request.ttl.CopyFrom(ttl_message)
        self._epoch = 0
        self.followers = Followers(ttl + self._answer_seconds)
        self.holder = holder
        self.held_by = ""
        self.waits_for = "it has just been started"

    async def acquire(self) -> tuple[int, Fence]:
        """Wait until nobody else holds the lease; return the epoch, and the fence to act behind."""
        while True:
            asked = boot_seconds()
            try:
                reply = await self._stub.HoldControllerLease(self._request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                self._explain(error)
                await asyncio.sleep(min(RETRY_SECONDS, self._ttl / 4))
            else:
                self.held_by = self.holder
                self.followers.inherit(reply)
                self._epoch = int(reply.epoch)
                fence = Fence(self._ttl)
                fence.granted(asked)
                return self._epoch, fence

    async def keep(self, fence: Fence) -> None:
        """Renew the lease for ever.

        Raises LeaseLost when another holder has it, or has had it in the meantime.
        """
        pause = self._ttl / 3
        while True:
            await self.followers.wanted(pause)
            asked = boot_seconds()
            fence.look()
            names = self.followers.name(self._request)
            try:
                reply = await self._stub.HoldControllerLease(
                    self._request, timeout=self._answer_seconds
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.ABORTED:
                    raise LeaseLost(error.details()) from error
                fence.unanswered()
                await asyncio.sleep(min(RETRY_SECONDS, self._ttl / 4))
                pause = 0.0
            else:
                # One more: the lease had run out, and nobody else took it in between.
                if reply.epoch not in (self._epoch, self._epoch + 1):
                    raise LeaseLost(f"others acted since epoch {self._epoch}, it is {reply.epoch}")
                self._epoch = reply.epoch
                fence.granted(asked)
                self.followers.named(names)
                pause = self._ttl / 3

    async def release(self) -> None:
        """Give the lease back, so that the next one acts at once.

        Nothing may be begun on a server from this call on.
        """
        if not self._epoch:
            return
        self._request.ttl.FromMilliseconds(1)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._stub.HoldControllerLease(self._request, timeout=RELEASE_SECONDS)

    def _explain(self, error: grpc.aio.AioRpcError) -> None:
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
