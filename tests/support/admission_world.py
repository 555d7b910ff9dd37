"""A replica in virtual time behind the gate under test: callers, the way there, and the model."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.router.core.admission.gate import Bounds, Gate, Refusal
from services.router.core.admission.priority import Priority
from services.router.core.admission.queues import QueuedRequest

WAY = 0.0007  # seconds from the Router to the model and back


@dataclass(frozen=True)
class Model:
    """A model whose instances take `seconds` for a batch, and `each` more for each request in it.
    `spread` varies these times: 0 not at all, 1 as in an exponential distribution."""

    seconds: float
    instances: int = 1
    each: float = 0.0
    batch: int = 1
    spread: float = 0.0

    @property
    def capacity(self) -> float:
        """Requests a second, with full batches."""
        return self.instances * self.batch / (self.seconds + self.each * self.batch)


class Request(NamedTuple):
    priority: Priority
    tenant: str
    arrived: float
    deadline: float


class Answer(NamedTuple):
    at: float
    request: Request

    @property
    def latency(self) -> float:
        return self.at - self.request.arrived

    @property
    def good(self) -> bool:
        return self.at <= self.request.deadline


class World:
    """The replica and its callers. `gates` has one gate for each Router."""

    def __init__(self, model: Model, *, gates: list[Gate] | None = None, seed: int = 1) -> None:
        self.model = model
        self.gates = [Gate(Bounds())] if gates is None else gates
        self.now = 0.0
        self.answers: list[Answer] = []
        self.refused: list[tuple[float, Request, Refusal]] = []
        self.most_in_flight = 0
        self.after: Callable[[Gate, Request], None] = lambda gate, request: None
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._waiting: dict[QueuedRequest, tuple[Gate, Request]] = {}
        self._fifo: list[tuple[Gate, Request, float]] = []
        self._idle = model.instances

    # --- load -------------------------------------------------------------------------------------

    def open(
        self,
        rate: float,
        seconds: float,
        *,
        priority: Priority = Priority.NORMAL,
        deadline: float = 1.0,
        tenant: str = "one",
    ) -> None:
        """Send `rate` requests a second at random, whatever becomes of them."""
        at = self.now
        while (at := at + self._random.expovariate(rate)) < self.now + seconds:
            request = Request(priority, tenant, at, at + deadline)
            self._at(at, self._arrive, self.gates[0], request)

    def closed(self, clients: int, *, gate: int = 0) -> None:
        """Add clients that send the next request when they have the answer."""
        for _ in range(clients):
            self._again(self.gates[gate])
        self.after = lambda gate, request: self._again(gate)

    def _again(self, gate: Gate) -> None:
        self._at(
            self.now, self._arrive, gate, Request(Priority.NORMAL, "one", self.now, self.now + 60)
        )

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
        self.now = until

    # --- what came of it --------------------------------------------------------------------------

    def latencies(self, since: float, priority: Priority = Priority.NORMAL) -> list[float]:
        return sorted(
            answer.latency
            for answer in self.answers
            if answer.at >= since and answer.request.priority is priority
        )

    def goodput(self, since: float) -> float:
        good = sum(answer.good for answer in self.answers if answer.at >= since)
        return good / (self.now - since)

    def refusals(self) -> Counter[tuple[Priority, Refusal]]:
        return Counter((request.priority, refusal) for _, request, refusal in self.refused)

    # --- the Router -------------------------------------------------------------------------------

    def _arrive(self, gate: Gate, request: Request) -> None:
        if gate.enter(request.priority, 1, self.now):
            self._send(gate, request)
            return
        waiting = QueuedRequest(request.tenant, request.priority, 100, self.now, 0.0)
        refused, displaced = gate.offer(waiting, request.deadline, 1, self.now)
        if displaced is not None:
            self._refuse(displaced, Refusal.DISPLACED)
        if refused is not None:
            self.refused.append((self.now, request, refused.refusal))
            return
        self._waiting[waiting] = gate, request
        self._at(waiting.until, self._expire, waiting)

    def _expire(self, waiting: QueuedRequest) -> None:
        if waiting in self._waiting:
            self._waiting[waiting][0].remove(waiting)
            self._refuse(waiting, Refusal.EXPIRED)

    def _refuse(self, waiting: QueuedRequest, refusal: Refusal) -> None:
        _, request = self._waiting.pop(waiting)
        self.refused.append((self.now, request, refusal))

    def _send(self, gate: Gate, request: Request) -> None:
        self.most_in_flight = max(self.most_in_flight, gate.in_flight)
        self._at(self.now + WAY / 2, self._received, gate, request, self.now)

    def _answered(self, gate: Gate, request: Request, sent: float) -> None:
        gate.leave(self.now - sent)
        self.answers.append(Answer(self.now, request))
        for waiting, refused in gate.release(1, self.now):
            if refused is None:
                self._send(*self._waiting.pop(waiting))
            else:
                self._refuse(waiting, refused.refusal)
        self.after(gate, request)

    # --- the model --------------------------------------------------------------------------------

    def _received(self, *job: Any) -> None:
        self._fifo.append(job)
        self._work()

    def _work(self) -> None:
        while self._idle and self._fifo:
            batch = self._fifo[: self.model.batch]
            del self._fifo[: self.model.batch]
            self._idle -= 1
            takes = self.model.seconds + self.model.each * len(batch)
            takes *= 1.0 + (self._random.expovariate(1.0) - 1.0) * self.model.spread
            self._at(self.now + takes, self._done, batch)

    def _done(self, batch: list[tuple[Gate, Request, float]]) -> None:
        self._idle += 1
        self._work()
        for job in batch:
            self._at(self.now + WAY / 2, self._answered, *job)

    def _at(self, at: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (at, next(self._order), act, arguments))


class Open(Gate):
    """A gate that lets everything through."""

    def __init__(self) -> None:
        super().__init__(Bounds())

    def enter(self, priority: Priority, replicas: int, now: float) -> bool:
        self.force()
        return True


def quantile(latencies: list[float], share: float) -> float:
    return latencies[int(share * (len(latencies) - 1))]
