"""Two Tritons with room for a third of what is wanted of them: nobody is failed, whatever dies."""

import concurrent.futures
import contextlib
import itertools
import os
import signal
import statistics
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from bench.residency.models import FLOATS, Model, write_repository
from model_repository.examples import Example
from services.embedded.background import Announced, BackgroundStack
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1 import types_pb2 as kinds
from shoal.registry.v1 import registry_service_pb2 as registry
from tests.fleet.test_kills import EAGER
from tests.fleet.test_thrash import by_onnxruntime
from tests.support.results import record
from tests.support.stack import (
    EXAMPLES,
    Fleet,
    Samples,
    example,
    infer,
    refusal,
    restarted,
    sampled,
    tensors,
    zipf,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

CLIENTS = 16
SERVERS = ("triton-0", "triton-1")
PLACES = 5  # of each server: a third of the units have a place
BUDGET_MIB = 320  # of each server: a third of what all units take
POLICIES = ("lru", "gdsf")
LIMITS = (f"--max-models={PLACES}", f"--memory-budget={BUDGET_MIB}MiB")
PARTS, PART_REQUESTS = 4, 5000
KILLS_REQUESTS, APART = 5000, 12.0  # seconds between two kills, at least
COLD_REQUESTS, ROUTER_KILLS = 800, 6
PAUSE = 0.2  # seconds of a client after a refusal by its own gRPC
IN_A_ROW = 7  # requests of a client for what it drew, at most; evenly from one
PROGRESS = 10.0  # seconds between two lines of it

# 20 models of many sizes, 10 units of the examples, and an ensemble of three of those.
MADE = tuple(Model(f"made_{number}", 1000 + number, 12 * (number % 6)) for number in range(20))
UNITS = (
    *(("multiplier", 1), ("multiplier", 2), ("text_stats", 1), ("file_features", 1)),
    *(("file_label", 1), ("magika", 1), ("squeezenet_onnx", 1), ("shufflenet_onnx", 1)),
    *(("densenet_onnx", 1), ("inception_v1_onnx", 1)),
)
ENSEMBLES = frozenset({"file_type"})


def examples() -> list[Example]:
    """One for each unit and the ensemble, large and small mixed, the most popular first."""
    given = np.arange(FLOATS, dtype=np.float32).reshape(1, -1)
    made = [
        Example(model.name, 1, {"INPUT": given}, {"OUTPUT": given + np.float32(model.addend)}, 0, 0)
        for model in MADE
    ]
    shown = [by_onnxruntime(example(*unit)) for unit in UNITS]
    found = [*made, *shown, example("file_type")]
    return sorted(found, key=lambda one: (len(one.model) * 7 + sum(one.model.encode())) % 31)


@contextlib.contextmanager
def running(folder: Path, *arguments: str, policy: str = POLICIES[0]) -> Iterator[Fleet]:
    if not (folder / MADE[0].name).exists():
        write_repository(folder, MADE)
    repositories = (f"--repository={EXAMPLES}", f"--repository={folder}")
    with BackgroundStack(
        *(*repositories, "--servers=2", "--trace-ratio=0", *arguments),
        environment={"SHOAL_CONTROLLER_POLICY": policy},
        start_within=120,
    ) as stack:
        yield Fleet(stack)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print at once, past pytest's capture: a soak shows that it lives."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def out(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{time.strftime('%H:%M:%S')} {text}", end="", flush=True)

    return out


# --- the clients ----------------------------------------------------------------------------------


@dataclass
class Storm:
    """`wrong`: what was not right, an error or an answer, with the second when it was told."""

    answered: int = 0
    wrong: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0
    #: Seconds that the slowest request took.
    longest: float = 0.0


def storm(
    stack: Fleet,
    draws: Iterable[tuple[Example, int]],
    say: Callable[[str], None],
    *,
    deadline: float,
    until: Callable[[], bool] = lambda: False,
) -> Storm:
    """16 clients share `draws`, each asking what it takes so many times in a row, until there are
    no more or `until` holds. `deadline`: seconds of each request."""
    found, left, lock = Storm(), iter(draws), threading.Lock()

    def ask() -> None:
        with contextlib.closing(
            triton.InferenceServerClient(stack.router_grpc, channel_args=EAGER)
        ) as client:
            while not until():
                with lock:
                    one, times = next(left, (None, 0))
                if one is None:
                    return
                for _ in range(times):
                    asked_at = time.monotonic()
                    complaints = asked(client, one, deadline)
                    with lock:
                        found.longest = max(found.longest, time.monotonic() - asked_at)
                        found.answered += 1
                        found.wrong += [(time.monotonic(), text) for text in complaints]
                    if any("StatusCode.UNAVAILABLE" in text for text in complaints):
                        time.sleep(PAUSE)

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask) for _ in range(CLIENTS)]
        while concurrent.futures.wait(clients, PROGRESS).not_done:
            took = time.monotonic() - began
            say(f"{found.answered} requests in {took:.0f} s, {len(found.wrong)} wrong")
        for client in clients:
            client.result()
    found.seconds = time.monotonic() - began
    return found


def asked(client: triton.InferenceServerClient, one: Example, deadline: float) -> list[str]:
    try:
        return infer(client, one, client_timeout=deadline)
    except triton.InferenceServerException as error:
        return [f"{one.model}:{one.version}: {error.status()} {error.message()}"]


def drawn(requests: int, shown: Sequence[Example], seed: int) -> Iterator[tuple[Example, int]]:
    """By a Zipf law; `requests` in all."""
    random = np.random.default_rng(seed)
    left = requests
    for one in zipf(requests, shown, 1.1, seed):
        times = min(left, int(random.integers(1, IN_A_ROW + 1)))
        if not times:
            return
        left -= times
        yield one, times


def learn(stack: Fleet, shown: Sequence[Example]) -> None:
    """Ask for every unit until all sizes are known, so that memory is promised by measure."""

    def known() -> bool:
        asked = registry.ListFootprintsRequest(page_size=1000)
        found = stack.registry.ListFootprints(asked).footprints
        return sum(bool(one.memory) for one in found) >= len(MADE) + len(UNITS)

    for one in shown:
        assert infer(stack.client, one, client_timeout=60) == []
    wait_until(known, 30, "every size is known")


@contextlib.contextmanager
def counted(stack: Fleet) -> Iterator[Counter[str]]:
    """The Controller's events from now on, by kind."""
    counts: Counter[str] = Counter()
    channel = grpc.insecure_channel(stack.controller_address)
    events = type(stack.controller)(channel).WatchEvents(controller.WatchEventsRequest())

    def run() -> None:
        with contextlib.suppress(grpc.RpcError):
            for response in events:
                kind = kinds.EventKind.Name(response.event.kind)
                counts[kind.removeprefix("EVENT_KIND_").lower()] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield counts
    finally:
        events.cancel()
        thread.join()
        channel.close()


# --- eviction throughout --------------------------------------------------------------------------


def part(
    repository: Path,
    limit: str,
    requests: int,
    seed: int,
    say: Callable[[str], None],
    policy: str = POLICIES[0],
) -> tuple[Storm, dict[str, Samples], Counter[str]]:
    shown = examples()
    with running(repository, limit, policy=policy) as stack, contextlib.ExitStack() as around:
        if "memory" in limit:
            learn(stack, shown)
        say(f"{policy}, {limit}, {requests} requests")
        samples = {
            server: around.enter_context(
                sampled(stack.stack, server, lambda: "memory" in limit, ENSEMBLES)
            )
            for server in SERVERS
        }
        counts = around.enter_context(counted(stack))
        found = storm(stack, drawn(requests, shown, seed), say, deadline=120)
    return found, samples, counts


def check(limit: str, found: Storm, samples: dict[str, Samples]) -> None:
    assert [text for _, text in found.wrong] == []
    for server, seen in samples.items():
        assert seen.errors == [], server
        assert seen.count > found.seconds, server  # one a second at the very least
        if "models" in limit:
            assert seen.most_units <= PLACES, server
        else:
            assert seen.most_settled_bytes <= BUDGET_MIB << 20, server


@pytest.mark.timeout(300)
def test_nobody_is_failed_while_every_model_is_wanted(
    repository: Path, say: Callable[[str], None]
) -> None:
    found, samples, counts = part(repository, LIMITS[0], 250, 5, say)
    check(LIMITS[0], found, samples)
    assert counts["evicting"] > PLACES
    assert len(set.union(*(seen.units_seen for seen in samples.values()))) > 2 * PLACES


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("number", range(PARTS))
def test_part_of_twenty_thousand(
    repository: Path,
    number: int,
    policy: str,
    say: Callable[[str], None],
    pytestconfig: pytest.Config,
) -> None:
    """Each by itself, and kept, so that the whole may be run in several goes (`-k "[3-lru]"`)."""
    limit = LIMITS[number % len(LIMITS)]
    pytestconfig.cache.set(_kept(number, policy), None)
    found, samples, counts = part(repository, limit, PART_REQUESTS, 100 + number, say, policy)
    seen = {
        "limit": limit,
        "requests": found.answered,
        "wrong": len(found.wrong),
        "seconds": round(found.seconds, 1),
        "evictions": counts["evicting"],
        "loads": counts["ready"],
        "samples": sum(one.count for one in samples.values()),
        "most units on a server": max(one.most_units for one in samples.values()),
        "most MiB on a server": max(one.most_settled_bytes for one in samples.values()) >> 20,
    }
    say(str(seen))
    check(limit, found, samples)
    pytestconfig.cache.set(_kept(number, policy), seen)


@pytest.mark.soak
@pytest.mark.parametrize("policy", POLICIES)
def test_twenty_thousand_in_all(policy: str, pytestconfig: pytest.Config) -> None:
    """Add up the parts that were run, here or before."""
    found = [pytestconfig.cache.get(_kept(number, policy), None) for number in range(PARTS)]
    missing = [number for number, one in enumerate(found) if one is None]
    assert missing == [], "these parts are still to be run"
    for limit in LIMITS:
        own = [one for one in found if one["limit"] == limit]
        total = {
            name: round(sum(one[name] for one in own), 1)
            for name in ("requests", "wrong", "seconds", "evictions", "loads", "samples")
        }
        unit = "units" if "models" in limit else "MiB"
        most = f"most {unit} on a server"
        record(
            f"Soak: {policy}, 16 clients, Zipf 1.1 over 31 units, two Tritons with {limit}",
            {**total, most: max(one[most] for one in own)},
        )
    assert sum(one["requests"] for one in found) >= PARTS * PART_REQUESTS


def _kept(number: int, policy: str) -> str:
    return f"shoal/soak/{policy}-{number}"


# --- kills ----------------------------------------------------------------------------------------


class Killer:
    """SIGKILL for `parts` in turn: `apart` seconds after the one before is back, or `every` so many
    seconds, once it is back."""

    def __init__(
        self,
        stack: BackgroundStack,
        parts: Sequence[str],
        apart: float = 0.0,
        *,
        every: float = 0.0,
    ) -> None:
        self._stack = stack
        self._parts = parts
        self._apart = apart
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kills: list[tuple[float, str]] = []
        #: Seconds until the part was ready again, after each kill.
        self.back: list[float] = []
        self.failure: BaseException | None = None

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.failure is None, self.failure

    def lives(self) -> Iterator[tuple[tuple[float, str], float]]:
        """Each kill, and the seconds until its part was back."""
        return zip(self.kills, [*self.back, 60.0], strict=False)

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause()):
                name = self._parts[len(self.kills) % len(self._parts)]
                before = self._stack.announced()
                os.kill(before.pid_of(name), signal.SIGKILL)
                self.kills.append((time.monotonic(), name))
                self._stack.wait_for(restarted(before, name), 60)
                self.back.append(time.monotonic() - self.kills[-1][0])
        except BaseException as error:
            self.failure = error

    def _pause(self) -> float:
        if self.kills and self._every:
            return max(0.0, self.kills[-1][0] + self._every - time.monotonic())
        return self._every or self._apart


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", POLICIES)
def test_tritons_are_killed_in_turn(
    repository: Path, policy: str, say: Callable[[str], None]
) -> None:
    shown = examples()
    with running(repository, LIMITS[0], policy=policy) as stack:
        for one in shown:
            assert infer(stack.client, one, client_timeout=60) == []
        draws = drawn(KILLS_REQUESTS, shown, seed=23)
        with counted(stack) as counts, Killer(stack.stack, SERVERS, APART) as killer:
            found = storm(stack, draws, say, deadline=30)
    for at, text in found.wrong:
        near = [f"{name} {at - when:+.1f} s" for when, name in killer.kills if at - when < 40]
        say(f"{text} [{near}]")
    told = Counter(name for _, name in killer.kills)
    record(
        "Soak: the same with deadlines of 30 s, each Triton SIGKILLed in turn",
        {
            "policy": policy,
            "kills": len(killer.kills),
            "seconds between them, at least": APART,
            "requests": found.answered,
            "wrong": len(found.wrong),
            "seconds": round(found.seconds, 1),
            "evictions": counts["evicting"],
        },
    )
    assert min(told[server] for server in SERVERS) >= 1, "both were killed"
    assert [text for _, text in found.wrong] == []


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_the_controller_is_killed_and_residents_answer(
    repository: Path, say: Callable[[str], None]
) -> None:
    shown = [one for one in examples() if one.model.startswith("made_")][: 2 * PLACES - 2]
    kills = 5
    with running(repository, LIMITS[0]) as stack:
        for one in shown:
            assert infer(stack.client, one, client_timeout=60) == []
        with Killer(stack.stack, ("controller",), 3.0) as killer:
            found = storm(
                stack,
                itertools.cycle([(one, 1) for one in shown]),
                say,
                deadline=30,
                until=lambda: len(killer.kills) > kills or killer.failure is not None,
            )
    record(
        "Soak: resident models while the Controller is SIGKILLed",
        {
            "kills": len(killer.kills) - 1,
            "models": len(shown),
            "requests": found.answered,
            "wrong": len(found.wrong),
            "seconds": round(found.seconds, 1),
        },
    )
    assert [text for _, text in found.wrong] == []


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", ["controller", "registry", "triton-0"])
def test_cold_requests_outlast_a_part_that_is_killed_every_ten_seconds(
    repository: Path, say: Callable[[str], None], part: str
) -> None:
    shown = examples()
    random = np.random.default_rng(29)
    with running(repository, LIMITS[0]) as stack:
        for one in shown:
            assert infer(stack.client, one, client_timeout=60) == []
        draws = [(shown[int(random.integers(len(shown)))], 1) for _ in range(COLD_REQUESTS)]
        with Killer(stack.stack, (part,), every=10.0) as killer:
            found = storm(stack, draws, say, deadline=30)
    for at, text in found.wrong:
        near = [f"{at - when:+.1f} s" for when, _ in killer.kills if at - when < 40]
        say(f"{text} [{near}]")
    record(
        f"Soak: cold requests with deadlines of 30 s, {part} SIGKILLed every 10 s",
        figures(found, killer),
    )
    assert [text for _, text in found.wrong] == []


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_router_that_is_killed_every_ten_seconds_is_soon_back(
    repository: Path, say: Callable[[str], None]
) -> None:
    """A request that a dead Router had is lost with its connection, and no other."""
    shown = examples()[: 2 * PLACES]
    with running(repository, LIMITS[0]) as stack:
        for one in shown:
            assert infer(stack.client, one, client_timeout=60) == []
        with Killer(stack.stack, ("router",), every=10.0) as killer:
            found = storm(
                stack,
                itertools.cycle([(one, 1) for one in shown]),
                say,
                deadline=30,
                until=lambda: len(killer.back) >= ROUTER_KILLS or killer.failure is not None,
            )
    record("Soak: the Router SIGKILLed every 10 s", figures(found, killer))
    assert [text for _, text in found.wrong if "StatusCode.UNAVAILABLE" not in text] == []
    for at, text in found.wrong:
        last, back = max((kill[0], back) for kill, back in killer.lives() if kill[0] <= at)
        assert at - last <= back + 1, text


def figures(found: Storm, killer: Killer) -> dict[str, object]:
    return {
        "kills": len(killer.kills),
        "requests": found.answered,
        "wrong": len(found.wrong),
        "seconds": round(found.seconds, 1),
        "seconds until it was back, median": round(statistics.median(killer.back), 1),
        "seconds until it was back, at most": round(max(killer.back), 1),
        "longest wait of a request, seconds": round(found.longest, 1),
    }


# --- poison ---------------------------------------------------------------------------------------

POISON = """
    import os, signal
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            numbers = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            if numbers.flat[0] == 666:
                os.kill(os.getppid(), signal.SIGKILL)
            return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", numbers)])
"""


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("poisoned")
    write_repository(folder, (*MADE, Model("poison", 0)))
    (folder / "poison" / "1" / "model.py").write_text(textwrap.dedent(POISON))
    return folder


def starts(now: Announced) -> int:
    return sum(now.starts(server) for server in SERVERS)


@pytest.mark.timeout(300)
def test_a_request_that_kills_its_server_does_not_walk_through_the_fleet(
    poisoned: Path, say: Callable[[str], None]
) -> None:
    shown = [one for one in examples() if one.model.startswith("made_")][:4]
    numbers = np.zeros((1, FLOATS), np.float32)
    harmless = Example("poison", 1, {"INPUT": numbers}, {"OUTPUT": numbers})

    def ask(first: float) -> object:
        given = tensors({"INPUT": np.full((1, FLOATS), first, np.float32)})
        return stack.client.infer("poison", given, client_timeout=30)

    with running(poisoned, LIMITS[0]) as stack:
        for one in (*shown, harmless):
            assert infer(stack.client, one, client_timeout=60) == []
        before = stack.stack.announced()
        poison = threading.Event()
        draws = itertools.cycle([(one, 1) for one in shown])
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            others = pool.submit(storm, stack, draws, say, deadline=30, until=poison.is_set)
            try:
                code, info, text = refusal(lambda: ask(666))
                crashed = time.monotonic()
                say(f"the poisonous request: {code} {info and info.reason} {text}")
                # Harmless requests for the same unit are told why, until the time is over.
                again, why, words = refusal(lambda: ask(0))
                say(f"the next one for its unit: {again} {why and why.reason} {words}")
                stack.stack.wait_for(
                    lambda now: now.all_ready() and starts(now) > starts(before), 60
                )
                for one in shown:
                    assert infer(stack.client, one, client_timeout=30) == []
                well = time.monotonic()
                third, reason, _ = refusal(lambda: ask(666))
            finally:
                poison.set()
            found = others.result()
        after = stack.stack.announced()
    assert starts(after) - starts(before) <= 2, "the request, and its one retry"
    assert info is not None
    assert why is not None
    assert reason is not None
    assert (again, why.reason) == ("UNAVAILABLE", "SET_ASIDE"), words
    assert (third, reason.reason) == ("UNAVAILABLE", "SET_ASIDE")
    # What was in flight at both crashes has had its one retry, too; everyone else is answered.
    late = [text for at, text in found.wrong if at > well]
    assert late == []
    assert [text for at, text in found.wrong if at < crashed - 5] == []
    assert found.answered > 0
