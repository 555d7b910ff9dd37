"""Two Controllers on one fleet: one is stopped or killed under churn, the other one goes on."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import psutil
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.embedded.background import BackgroundStack
from shoal.client import connect
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1 import types_pb2 as kinds
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.router.v1 import router_service_pb2 as router
from tests.support.results import record
from tests.support.stack import ADMIN_HEADER, EXAMPLES, Fleet, admin_key, example, infer, refusal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

TTL = 2.0  # seconds
CLIENTS = 8
UNITS = (
    *(("multiplier", 1), ("multiplier", 2), ("text_stats", 1), ("file_features", 1)),
    *(("file_label", 1), ("squeezenet_onnx", 1)),
)
STRANGER = "magika"  # nobody asks for it
EXIT_LEASE_LOST = 69


class Churn:
    """Clients that ask for more units than fit, without a pause, each time for one of them."""

    def __init__(self, stack: Fleet) -> None:
        self._stack = stack
        self._stop = threading.Event()
        self._shown = {unit: example(*unit) for unit in UNITS}
        self.told: list[tuple[float, tuple[str, int], str]] = []
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> "Churn":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        draw = random.Random(seed)
        client = triton.InferenceServerClient(self._stack.router_grpc)
        while not self._stop.is_set():
            unit = draw.choice(UNITS)
            try:
                told = "; ".join(infer(client, self._shown[unit], client_timeout=60))
            except triton.InferenceServerException as error:
                told = f"{error.status()}: {error.message()}"
            self.told.append((time.monotonic(), unit, told))

    def wrong(self) -> list[str]:
        return [f"{unit}: {told}" for _, unit, told in self.told if told]

    def every_unit_answers(self) -> None:
        """Wait until each was answered once more, which takes loads and evictions."""
        began = time.monotonic()
        wait_until(
            lambda: {unit for at, unit, told in self.told if at > began and not told} >= {*UNITS},
            90,
            "every unit answers",
        )


@dataclass(frozen=True)
class Pair:
    """A stack with two Controllers."""

    fleet: Fleet

    @property
    def stack(self) -> BackgroundStack:
        return self.fleet.stack

    def stub(self, part: str) -> ControllerServiceStub:
        return ControllerServiceStub(grpc.insecure_channel(self.stack.controllers[part]))

    def serving(self, part: str) -> bool | None:
        """None: it does not answer."""
        with grpc.insecure_channel(self.stack.controllers[part]) as channel:
            request = health_pb2.HealthCheckRequest()
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=0.5)
            except grpc.RpcError:
                return None
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def acting(self) -> str | None:
        return next((part for part in self.stack.controllers if self.serving(part)), None)

    def other(self, part: str) -> str:
        (other,) = self.stack.controllers.keys() - {part}
        return other

    def epoch(self) -> int:
        """The one that the Router follows."""
        return self.fleet.router.GetStatistics(router.GetStatisticsRequest()).revision.epoch

    def followed(self) -> bool:
        statistics = self.fleet.router.GetStatistics(router.GetStatisticsRequest())
        return bool(statistics.controller_connected)

    def unexpected(self, part: str) -> list[str]:
        """What `part` has seen change without having asked for it."""
        request = controller.ListEventsRequest(page_size=1000)
        with connect(controller=self.stack.controllers[part]) as shoal:
            return [
                f"{event.server} {event.version} {event.reason}"
                for page in shoal.pages(shoal.controller.ListEvents, request)
                for event in page.events
                if event.kind == kinds.EVENT_KIND_UNEXPECTED
            ]

    def both_up(self) -> None:
        self.stack.wait_for(lambda now: now.all_ready(), 30)
        wait_until(self.followed, 20, "the Router follows one")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with BackgroundStack(
        *(f"--repository={EXAMPLES}", "--servers=2", "--controllers=2", "--max-models=2"),
        "--trace-ratio=0",
        environment={
            "SHOAL_CONTROLLER_LEASE_TTL": str(TTL),
            # So long a successor unloads nothing, because Routers may still have the old table.
            "SHOAL_CONTROLLER_ROUTER_LEASE": "3",
        },
    ) as running:
        yield Pair(Fleet(running))


@dataclass(frozen=True)
class Frozen:
    """Seconds from the stop: until the successor acted, and until the Router followed it."""

    successor: str
    acted: float
    followed: float


def freeze(pair: Pair, churn: Churn, lease_times: float) -> Frozen:
    """Stop the one that acts for so long, under churn, and continue it; it has ended then, and was
    started again."""
    old, epoch, before = pair.acting(), pair.epoch(), pair.stack.announced()
    assert old is not None
    successor = pair.other(old)
    pid = before.pid_of(old)
    assert pid is not None
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: pair.serving(successor), 5 * TTL, "the successor acts")
        acted = time.monotonic() - began
        wait_until(lambda: pair.epoch() > epoch, 5, "the Router follows it")
        followed = time.monotonic() - began
        churn.every_unit_answers()
        end = began + lease_times * TTL
        wait_until(lambda: time.monotonic() > end, 60, "the old one is frozen long enough")
    finally:
        os.kill(pid, signal.SIGCONT)
    after = pair.stack.wait_for(
        lambda now: now.all_ready() and now.starts(old) > before.starts(old), 30
    )
    said = [event["text"] for event in after.events if event["part"] == old]
    assert any(f"status {EXIT_LEASE_LOST}" in text for text in said), said
    log = (after.data / "logs" / f"{old}.log").read_text()
    assert "start this one again" in log
    assert pair.serving(old) is False, "it stands by"
    assert pair.acting() == successor
    return Frozen(successor, acted, followed)


def act_late(pair: Pair, server: str, method: str, request: object) -> None:
    """Do to a server what a Controller does that does not know yet that it has been replaced."""
    pid = pair.stack.announced().pid_of(server)
    with grpc.insecure_channel(pair.stack.tritons[server]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        key = admin_key(psutil.Process(pid))
        getattr(stub, method)(request, metadata=((ADMIN_HEADER, key),), timeout=30)


def late_acts(pair: Pair, successor: str) -> int:
    """Have a load and an unload come that the successor has not asked for; each must be counted
    and repaired. Returns how many there were."""
    held = "models/multiplier/versions/1"
    stub = pair.stub(successor)
    pinned = stub.PinModel(controller.PinModelRequest(name=held), timeout=60).replica
    server = pinned.name.split("/")[1]
    before = len(pair.unexpected(successor))

    def undone() -> int:
        """Gone while it was READY, or while another version was loaded beside it."""
        return sum("models/multiplier/" in text for text in pair.unexpected(successor))

    known = undone()
    unload = service_pb2.RepositoryModelUnloadRequest(model_name="multiplier")
    act_late(pair, server, "RepositoryModelUnload", unload)
    wait_until(lambda: undone() > known, 10, "the late unload is counted")
    stub.PinModel(controller.PinModelRequest(name=held), timeout=60)  # READY again, and held

    load = service_pb2.RepositoryModelLoadRequest(model_name=STRANGER)
    act_late(pair, server, "RepositoryModelLoad", load)
    wait_until(
        lambda: any(
            STRANGER in text and "nobody asked for it" in text
            for text in pair.unexpected(successor)
        ),
        10,
        "the late load is counted",
    )

    def evicted() -> bool:
        request = controller.ListReplicasRequest(model=f"models/{STRANGER}")
        return not stub.ListReplicas(request, timeout=5).replicas

    wait_until(evicted, 30, "what came unasked had to make room")
    stub.UnpinModel(controller.UnpinModelRequest(name=held), timeout=10)
    return len(pair.unexpected(successor)) - before


@pytest.mark.timeout(180)
def test_one_that_was_frozen_under_churn_ends_and_stands_by(pair: Pair) -> None:
    pair.both_up()
    with Churn(pair.fleet) as churn:
        churn.every_unit_answers()
        frozen = freeze(pair, churn, 3)
        assert late_acts(pair, frozen.successor) >= 2
        churn.every_unit_answers()
    assert churn.wrong() == []
    assert frozen.acted < TTL + 5
    assert frozen.followed < frozen.acted + 3


@pytest.mark.timeout(120)
def test_one_that_is_killed_under_churn_is_replaced(pair: Pair) -> None:
    pair.both_up()
    with Churn(pair.fleet) as churn:
        wait_until(lambda: len(churn.told) > 4 * CLIENTS, 30, "the clients are at it")
        old, epoch = pair.acting(), pair.epoch()
        assert old is not None
        pid = pair.stack.announced().pid_of(old)
        assert pid is not None
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pair.epoch() > epoch, TTL + 8, "one of them acts again")
        assert time.monotonic() - began < TTL + 8
        churn.every_unit_answers()
    assert churn.wrong() == []


def test_the_one_on_standby_says_so(pair: Pair) -> None:
    pair.both_up()
    acting = pair.acting()
    assert acting is not None
    standby = pair.other(acting)
    assert pair.serving(standby) is False
    request = controller.ListServersRequest()
    code, info, text = refusal(lambda: pair.stub(standby).ListServers(request, timeout=5))
    assert (code, info.reason if info else "") == ("UNAVAILABLE", "STANDS_BY")
    assert info is not None
    assert info.metadata["holder"] == acting
    assert f"{acting} has the controller lease" in text


def test_a_client_of_both_calls_the_one_that_acts(pair: Pair) -> None:
    pair.both_up()
    acting = pair.acting()
    assert acting is not None
    for first in (acting, pair.other(acting)):
        addresses = f"{pair.stack.controllers[first]},{pair.stack.controllers[pair.other(first)]}"
        with connect(controller=addresses) as shoal:
            reply = shoal.call(shoal.controller.ListServers, controller.ListServersRequest())
        assert [server.name for server in reply.servers] == ["servers/triton-0", "servers/triton-1"]


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_one_that_was_frozen_while_the_registry_is_away_waits_for_it(pair: Pair) -> None:
    pair.both_up()
    acting, now = pair.acting(), pair.stack.announced()
    assert acting is not None
    pid, registry = now.pid_of(acting), now.pid_of("registry")
    assert pid is not None
    assert registry is not None
    hot, cold = example("multiplier", 1), example("file_label", 1)
    assert infer(pair.fleet.client, hot, client_timeout=30) == []
    pair.stub(acting).EvictModel(controller.EvictModelRequest(name="models/file_label"), timeout=30)
    os.kill(registry, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGSTOP)
        try:
            end = time.monotonic() + 3 * TTL
            wait_until(lambda: time.monotonic() > end, 60, "the lease has run out")
        finally:
            os.kill(pid, signal.SIGCONT)
        log = now.data / "logs" / f"{acting}.log"
        doubt = "nothing is done until the registry says who acts"
        wait_until(lambda: doubt in log.read_text(), 10, "it runs again, and doubts")
        with pytest.raises(triton.InferenceServerException, match="DEADLINE_EXCEEDED"):
            infer(pair.fleet.client, cold, client_timeout=TTL)
        assert infer(pair.fleet.client, hot, client_timeout=5) == []
    finally:
        os.kill(registry, signal.SIGCONT)
    assert infer(pair.fleet.client, cold, client_timeout=60) == []
    # Whichever asked the Registry first acts.
    wait_until(pair.acting, 10, "one of them acts")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_frozen_again_and_again(pair: Pair) -> None:
    pair.both_up()
    rounds, late = [], 0
    began = time.monotonic()
    with Churn(pair.fleet) as churn:
        churn.every_unit_answers()
        for _ in range(20):
            frozen = freeze(pair, churn, 3)
            rounds.append(frozen)
            late += late_acts(pair, frozen.successor)
            churn.every_unit_answers()
    record(
        "A Controller frozen for three lease times under churn, 20 times",
        {
            "lease_seconds": TTL,
            "clients": CLIENTS,
            "requests": len(churn.told),
            "wrong": len(churn.wrong()),
            "seconds": round(time.monotonic() - began, 1),
            "longest_until_the_successor_acted_seconds": f"{max(r.acted for r in rounds):.1f}",
            "longest_until_it_was_followed_seconds": f"{max(r.followed for r in rounds):.1f}",
            "late_acts_counted_and_repaired": late,
        },
    )
    assert churn.wrong() == []
    assert late >= 2 * len(rounds)
