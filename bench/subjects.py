"""What is measured: a Triton, reached directly, through the bare relay, Routers and the lane."""

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
from tritonclient.grpc import service_pb2

from bench.churn import Churn
from bench.cpu import Clock
from bench.load import Failed, http_call
from bench.rounds import DIRECT, RELAY
from bench.workloads import (
    INFER,
    MODEL,
    STREAM_INFER,
    WORKLOADS,
    Workload,
    composed,
    is_right,
    is_right_in_stream,
    is_right_over_http,
    other,
    request,
    write_ensembles,
    write_repository,
)
from services.embedded import launcher, tracing
from services.embedded.background import BackgroundStack
from services.embedded.ports import LOOPBACK, pick
from services.embedded.settings import StackSettings

LANE: Final = "lane"
ROUTER: Final = "router"  # that traces nothing
ROUTER_1: Final = "router, 1 %"
ROUTER_100: Final = "router, 100 %"

_ROOT: Final = Path(__file__).resolve().parents[1]
_START_WITHIN: Final = 30.0  # seconds
_STACK_WITHIN: Final = 600.0  # seconds, with ten thousand models
_STOP_WITHIN: Final = 15.0
_POLL: Final = 0.05
_OPTIONS: Final = (("grpc.max_receive_message_length", -1),)
_FEW: Final = 10  # models
_FLOATS: Final = 16  # of a request that has its model loaded
_LOADS: Final = 16  # such requests at once


class Behind(NamedTuple):
    """A Triton. `clock`: its CPU time, with its models'. `answered`: requests so far that it has
    answered without an error. `churn`: another model of its stack's."""

    clock: Clock
    answered: Callable[[], int]
    churn: Churn


class Variant(NamedTuple):
    """`address`, `http`: its ports for gRPC and for HTTP, "" if it has none. `proxy`: the CPU time
    of what stands in front of `triton`; the lane's has the Router's in it, which reads the lane's
    journal. `traced`: it tells of requests, also when they are over."""

    name: str
    address: str
    http: str
    proxy: Clock | None
    triton: Behind
    traced: bool = False

    def at(self, workload: Workload) -> str:
        """The `host:port` that the workload goes to; "" if there is none."""
        return self.http if workload.http else self.address


class Subjects(NamedTuple):
    """`variants`: by the model that is asked for; those of one name are processes alike."""

    variants: Mapping[str, tuple[Variant, ...]]
    triton_version: str

    def of(self, workload: Workload, number: int) -> dict[str, Variant]:
        """By name; in the rounds one process after the other: where its memory happens to lie makes
        one up to a tenth slower than another one."""
        alike: dict[str, list[Variant]] = {}
        for variant in self.variants[workload.model]:
            if variant.at(workload):
                alike.setdefault(variant.name, []).append(variant)
        return {name: found[number % len(found)] for name, found in alike.items()}

    def churned(self) -> float:
        """How often a second another model came and went while there was churn; 0 if never."""
        all_variants = itertools.chain.from_iterable(self.variants.values())
        churns = {variant.triton.churn for variant in all_variants}
        seconds = sum(churn.seconds for churn in churns)
        return sum(churn.turns for churn in churns) / seconds if seconds else 0.0


@contextlib.contextmanager
def running(
    processes: int,
    models: Collection[str],
    *,
    traced: bool,
    registered: int = 0,
    resident: int = 1,
) -> Iterator[Subjects]:
    """Starts it all, and checks that every variant gives the right answers. `processes`: of each
    relay and Router. `models`: those that are to be asked. `traced`: with Routers that trace, too.
    `registered`: with those of a stack that knows so many models, unless 0, of which so many are
    `resident`.

    Raises Failed. Decoupled and other models have a Triton each: release 24.10 does not survive
    streams to both.
    """
    with contextlib.ExitStack() as stack:
        variants = {
            model: stack.enter_context(alone(model, processes, traced=traced and model == MODEL))
            for model in models
        }
        if registered and MODEL in variants:
            variants[MODEL] += stack.enter_context(_knowing(registered, resident, processes))
        direct, *_ = next(iter(variants.values()))
        yield Subjects(variants, version(direct.address))


@contextlib.contextmanager
def alone(model: str, processes: int = 1, *, traced: bool) -> Iterator[tuple[Variant, ...]]:
    """Direct Triton that serves the `model`, and all variants in front of it. The rest is as for
    `running`."""
    with contextlib.ExitStack() as stack:
        up, own = stack.enter_context(_stack(model, _FEW, ROUTER, LANE))
        triton = own[0].triton
        direct = Variant(DIRECT, *_triton(up), None, triton)
        relays = [stack.enter_context(_relay(direct.address, triton)) for _ in range(processes)]
        variants = [direct, *relays, *own]
        further: list[tuple[str, Mapping[str, str]]] = [(ROUTER, {})] * (processes - 1)
        if traced:
            to = stack.enter_context(_collector())
            for name, ratio in ((ROUTER_1, 0.01), (ROUTER_100, 1.0)):
                settings = tracing.plan(StackSettings(trace_ratio=ratio), {}, to).variables
                further += [(name, settings)] * processes
        for name, settings in further:
            variants.append(stack.enter_context(_router(up, triton, name, settings)))
        for variant in variants:
            _check(variant, model)
        yield tuple(variants)


@contextlib.contextmanager
def _knowing(registered: int, resident: int, processes: int) -> Iterator[tuple[Variant, ...]]:
    """The Routers and the lane of a stack that has so many models registered and resident."""
    name = f"{registered} models"
    if resident > 1:
        name += f", {resident} resident"
    with contextlib.ExitStack() as stack:
        stacked = _stack(MODEL, registered, name, f"{LANE}, {name}", resident)
        up, own = stack.enter_context(stacked)
        others = [
            stack.enter_context(_router(up, own[0].triton, name, {})) for _ in range(processes - 1)
        ]
        for variant in (*own, *others):
            _check(variant, MODEL)
        yield *own, *others


@contextlib.contextmanager
def _stack(
    model: str, registered: int, router_name: str, lane_name: str, resident: int = 1
) -> Iterator[tuple[BackgroundStack, tuple[Variant, ...]]]:
    """A stack with the `model` resident, and so many registered; its Router by itself, and its lane
    where that runs. Triton traces nothing: release 24.10 ends when it traces every request of
    many."""
    with contextlib.ExitStack() as stack:
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
        write_repository(repository, model, registered - resident)
        write_ensembles(repository, resident - 1)
        given = (f"--repository={repository}", "--no-otlp", "--lane=on")
        up = stack.enter_context(BackgroundStack(*given, start_within=_STACK_WITHIN))
        announced = up.announced()
        at = announced.endpoints
        (metrics,) = at["triton_metrics"].values()
        clock = Clock(announced.pid_of("triton-0"), with_children=True)
        own = at["router_own_grpc"], at["router_own_http"]
        churn = Churn(own[0], up.controller, other(0))
        behind = Behind(clock, lambda: _answered(metrics, model), churn)
        pid = announced.pid_of("router")
        found = [Variant(router_name, *own, Clock(pid), behind)]
        if LANE in announced.parts:
            proxy = Clock(announced.pid_of(LANE), pid)
            found.append(Variant(lane_name, up.router_grpc, up.router_http, proxy, behind))
        _check(found[0], model)  # makes the model resident
        _load(own[0], map(composed, range(resident - 1)))
        yield up, tuple(found)


def _triton(up: BackgroundStack) -> tuple[str, str]:
    """Where the stack's Triton listens for gRPC and, if it does, for HTTP."""
    (address,) = up.tritons.values()
    (http,) = up.announced().endpoints["triton_http"].values() or ("",)
    return address, http


@contextlib.contextmanager
def _relay(upstream: str, triton: Behind) -> Iterator[Variant]:
    with process([sys.executable, "-P", "-m", "bench.relay", upstream], {}) as relay:
        assert relay.stdout
        address = relay.stdout.readline().decode().strip()
        if not address:
            raise Failed("the relay did not start")
        yield Variant(RELAY, address, "", Clock(relay.pid), triton)


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """Gives host:port, for OTLP over HTTP."""
    grpc_port, http_port = pick(2)
    settings = {"SHOAL_OTLP_GRPC_PORT": str(grpc_port), "SHOAL_OTLP_HTTP_PORT": str(http_port)}
    with process([sys.executable, "-P", "-m", "services.embedded.collector"], settings):
        yield f"127.0.0.1:{http_port}"


@contextlib.contextmanager
def _router(
    up: BackgroundStack, triton: Behind, name: str, settings: Mapping[str, str]
) -> Iterator[Variant]:
    """One more Router of the running stack."""
    grpc_port, http_port = pick(2)
    settings = {
        **settings,
        "SHOAL_ROUTER_GRPC_PORT": str(grpc_port),
        "SHOAL_ROUTER_HTTP_PORT": str(http_port),
        "SHOAL_ROUTER_CONTROLLER": up.controller,
    }
    with process([sys.executable, "-P", "-m", "services.router"], settings) as router:
        traced = "OTEL_TRACES_SAMPLER" in settings
        at = f"{LOOPBACK}:{grpc_port}", f"{LOOPBACK}:{http_port}"
        yield Variant(name, *at, Clock(router.pid), triton, traced)


@contextlib.contextmanager
def process(command: list[str], settings: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Ends with this process, however that ends. What it wrote is told when something Failed."""
    with tempfile.TemporaryFile() as log:
        started = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *command],
            env={**os.environ, "PYTHONPATH": str(_ROOT), **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            yield started
        except Failed as failed:
            log.seek(0)
            raise Failed(f"{failed}\n{log.read()[-2000:].decode(errors='replace')}") from failed
        finally:
            end(started)


def end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _load(router: str, models: Iterable[str]) -> None:
    """Have the models answer once. Raises Failed."""

    def ask(model: str) -> None:
        if not is_right(_FLOATS, infer(request(_FLOATS, model), timeout=_STACK_WITHIN)):
            raise Failed(f"{model} gives a wrong answer")

    with grpc.insecure_channel(router) as channel, ThreadPoolExecutor(_LOADS) as pool:
        infer: Any = channel.unary_unary(INFER)
        try:
            list(pool.map(ask, models))
        except grpc.RpcError as error:
            raise Failed(f"a model does not load: {error}") from error


def _check(variant: Variant, model: str) -> None:
    """Waits until it answers, and compares an answer of every workload's."""
    deadline = time.monotonic() + _START_WITHIN
    for workload in WORKLOADS:
        if workload.model != model or not variant.at(workload):
            continue
        while True:
            try:
                right = _asked(variant.at(workload), workload)
                break
            except (grpc.RpcError, urllib.error.URLError) as error:
                if time.monotonic() > deadline:
                    raise Failed(f"{variant.name} does not answer: {error}") from error
                time.sleep(_POLL)
        if not right:
            raise Failed(f"{variant.name} answers {workload.title} with other numbers")


def _asked(address: str, workload: Workload) -> bool:
    """Whether one request of the workload got all its answers, and the right ones."""
    if workload.http:
        call = http_call(address, workload)
        headers = dict(header.split(": ", 1) for header in call.headers)
        asked = urllib.request.Request(call.url, call.body, headers)
        with urllib.request.urlopen(asked, timeout=_START_WITHIN) as response:
            return is_right_over_http(workload, response.read())
    message = request(workload.floats, workload.model)
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        if workload.path != STREAM_INFER:
            infer: Any = channel.unary_unary(workload.path)
            return is_right(workload.floats, infer(message, timeout=_START_WITHIN))
        stream: Any = channel.stream_stream(workload.path)
        replies = list(stream(iter([message]), timeout=_START_WITHIN))
        return len(replies) == workload.replies and all(
            is_right_in_stream(workload.floats, reply) for reply in replies
        )


def version(address: str) -> str:
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ServerMetadata",
            request_serializer=service_pb2.ServerMetadataRequest.SerializeToString,
            response_deserializer=service_pb2.ServerMetadataResponse.FromString,
        )
        return str(ask(service_pb2.ServerMetadataRequest(), timeout=_START_WITHIN).version)


def _answered(metrics: str, model: str) -> int:
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=_START_WITHIN) as response:
        lines = response.read().decode().splitlines()
    name = "nv_inference_request_success{"
    rows = [line for line in lines if line.startswith(name) and f'model="{model}"' in line]
    return sum(int(float(row.rpartition(" ")[2])) for row in rows)
