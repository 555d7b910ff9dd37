"""kill -9 of every part, one after the other, under load: the stack heals by itself and says so."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import tritonclient.grpc as triton

from services.embedded.background import BackgroundStack
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1 import types_pb2 as kinds
from tests.support.stack import EXAMPLES, Fleet, example, infer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

HOT = ("multiplier", 1)
OTHERS = (("text_stats", 1), ("multiplier", 2), ("file_features", 1), ("squeezenet_onnx", 1))


# gRPC's own back-off would go on telling of a Router that has long come back.
EAGER = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Load:
    """Clients that ask without a pause, each with a deadline; what they were told, and when."""

    def __init__(self, stack: Fleet) -> None:
        self._stack = stack
        self._stop = threading.Event()
        self.told: list[tuple[float, tuple[str, int], str]] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(units,))
            for units in ((HOT,), (HOT,), OTHERS, OTHERS)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, units: tuple[tuple[str, int], ...]) -> None:
        client = triton.InferenceServerClient(self._stack.router_grpc, channel_args=EAGER)
        shown = {unit: example(*unit) for unit in units}
        turn = 0
        while not self._stop.is_set():
            unit = units[turn % len(units)]
            turn += 1
            try:
                told = "; ".join(infer(client, shown[unit], client_timeout=30))
            except triton.InferenceServerException as error:
                told = f"{error.status()}: {error.message()}"
            self.told.append((time.monotonic(), unit, told))

    def between(self, began: float, ended: float, unit: tuple[str, int] | None = None) -> list[str]:
        return [t for at, u, t in self.told if began <= at <= ended and unit in (None, u)]

    def errors(self, began: float, ended: float) -> list[str]:
        return [told for told in self.between(began, ended) if told]


@pytest.fixture(scope="module")
def stack() -> Iterator[Fleet]:
    with BackgroundStack(
        f"--repository={EXAMPLES}", "--max-models=3", "--trace-ratio=0"
    ) as running:
        yield Fleet(running)


def kill(stack: Fleet, part: str) -> tuple[float, float]:
    """Kill a part and wait until all is well again: when it was, and when it was over."""
    before = stack.stack.announced()
    began = time.monotonic()
    os.kill(before.pid_of(part), signal.SIGKILL)
    after = stack.stack.wait_for(
        lambda now: now.all_ready() and now.starts(part) > before.starts(part), 60
    )
    said = [event["text"] for event in after.events if event["part"] == part]
    assert any("SIGKILL" in text or "killed" in text for text in said), said
    return began, time.monotonic()


def serving(stack: Fleet, load: Load) -> None:
    """Wait until every model that is asked for was answered rightly again."""
    began = time.monotonic()
    wanted = {HOT, *OTHERS}
    wait_until(
        lambda: {u for at, u, told in load.told if at > began and not told} >= wanted,
        90,
        "every model answers",
    )


def killed_again_and_again(stack: Fleet, kills: int, every: float) -> list[str]:
    """Kill the Controller under load, with at least `every` seconds in between. Returns what the
    stack said of each death."""
    with Load(stack) as load:
        serving(stack, load)
        began = time.monotonic()
        for _ in range(kills):
            next_at = kill(stack, "controller")[0] + every
            wait_until(lambda at=next_at: time.monotonic() >= at, every + 1, "its time")  # type: ignore[misc]
        serving(stack, load)
        assert load.errors(began, time.monotonic()) == []
        assert len(load.between(began, time.monotonic())) > 20 * kills
    events = stack.stack.announced().events
    return [e["text"] for e in events if e["part"] == "controller" and "SIGKILL" in e["text"]]


@pytest.mark.timeout(300)
def test_no_request_fails_while_the_controller_is_killed_again_and_again(stack: Fleet) -> None:
    killed_again_and_again(stack, kills=3, every=0.0)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_controller_that_is_killed_every_ten_seconds_is_soon_back(stack: Fleet) -> None:
    said = killed_again_and_again(stack, kills=20, every=10.0)
    assert all("starting it again in 0.25 s" in text for text in said[-19:])


@pytest.mark.timeout(120)
def test_a_new_controller_evicts_as_soon_as_the_routers_are_back() -> None:
    """A Router's lease outlasts every deadline here, so nothing else ends the wait for Routers."""
    with BackgroundStack(
        *(f"--repository={EXAMPLES}", "--max-models=1", "--trace-ratio=0"),
        environment={"SHOAL_CONTROLLER_ROUTER_LEASE": "600"},
    ) as running:
        stack = Fleet(running)
        assert infer(stack.client, example(*HOT), client_timeout=30) == []
        for unit in (("text_stats", 1), HOT):
            kill(stack, "controller")
            assert infer(stack.client, example(*unit), client_timeout=30) == []


@pytest.mark.timeout(300)
def test_every_part_is_killed_under_load(stack: Fleet) -> None:
    with Load(stack) as load:
        serving(stack, load)
        for part in ("controller", "registry"):
            began, ended = kill(stack, part)
            assert load.errors(began, ended) == [], part
            assert len(load.between(began, ended, HOT)) > 20, "resident models answered meanwhile"
            serving(stack, load)
            assert load.errors(began, time.monotonic()) == [], part

        began, _ = kill(stack, "triton-0")
        serving(stack, load)
        assert load.errors(began, time.monotonic()) == [], "it was waited for"
        lost = stack.controller.ListEvents(
            controller.ListEventsRequest(about="servers/triton-0", page_size=1000)
        ).events
        assert kinds.EVENT_KIND_SERVER_LOST in {event.kind for event in lost}

        began, ended = kill(stack, "router")
        serving(stack, load)
        # Callers of a Router that dies are told by their own gRPC; afterwards all is well.
        told = load.errors(began, ended)
        assert [text for text in told if "StatusCode.UNAVAILABLE" not in text] == []
        assert load.errors(ended + 3, time.monotonic()) == []
