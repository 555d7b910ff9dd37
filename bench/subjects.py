"""What is measured: one Triton, reached directly, through the bare relay and through Routers."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
from tritonclient.grpc import service_pb2

from bench.cpu import Clock
from bench.generator import PATH
from bench.load import Failed
from bench.rounds import DIRECT, RELAY
from bench.workloads import MODEL, WORKLOADS, is_right, request, write_repository
from services.embedded import launcher, tracing
from services.embedded.background import BackgroundStack
from services.embedded.ports import Claims
from services.embedded.settings import StackSettings

ROUTER: Final = "router"  # that traces nothing
ROUTER_1: Final = "router, 1 %"
ROUTER_100: Final = "router, 100 %"

_ROOT: Final = Path(__file__).resolve().parents[1]
_START_WITHIN: Final = 30.0  # seconds
_STOP_WITHIN: Final = 15.0
_POLL: Final = 0.05
_OPTIONS: Final = (("grpc.max_receive_message_length", -1),)


class Variant(NamedTuple):
    """`proxy`: the CPU time of what stands in front of Triton."""

    name: str
    address: str
    proxy: Clock | None


class Subjects(NamedTuple):
    variants: tuple[Variant, ...]
    triton: Clock  # with its models
    triton_version: str
    answered: Callable[[], int]  # requests that Triton has answered without an error


@contextlib.contextmanager
def running(*, traced: bool) -> Iterator[Subjects]:
    """Starts it all, and checks that every variant gives the right answers. `traced`: with Routers
    that trace, too. Raises Failed."""
    arguments = ("--trace-ratio=0.01",) if traced else ("--no-otlp",)
    with contextlib.ExitStack() as stack:
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
        write_repository(repository)
        up = stack.enter_context(BackgroundStack(f"--repository={repository}", *arguments))
        announced = up.announced()
        (triton,) = announced.tritons.values()
        (metrics,) = announced.endpoints["triton_metrics"].values()
        own = Variant(ROUTER, up.router_grpc, Clock(announced.pid_of("router") or 0))
        _check(own)  # makes the model resident
        variants = [Variant(DIRECT, triton, None), stack.enter_context(_relay(triton))]
        if traced:
            routers = ((ROUTER, None), (ROUTER_100, 1.0))
            off, full = (stack.enter_context(_router(up, *router)) for router in routers)
            variants += [off, own._replace(name=ROUTER_1), full]
        else:
            variants.append(own)
        for variant in variants:
            _check(variant)
        clock = Clock(announced.pid_of("triton-0") or 0, with_children=True)
        yield Subjects(tuple(variants), clock, _version(triton), lambda: _answered(metrics))


@contextlib.contextmanager
def _relay(upstream: str) -> Iterator[Variant]:
    with _process([sys.executable, "-P", "-m", "bench.relay", upstream], {}) as process:
        assert process.stdout
        address = process.stdout.readline().decode().strip()
        if not address:
            raise Failed("the relay did not start")
        yield Variant(RELAY, address, Clock(process.pid))


@contextlib.contextmanager
def _router(up: BackgroundStack, name: str, ratio: float | None) -> Iterator[Variant]:
    """One more Router of the running stack. `ratio`: share of requests to trace; None: no traces,
    which is less than 0."""
    wanted = StackSettings(no_otlp=True) if ratio is None else StackSettings(trace_ratio=ratio)
    claims = Claims()
    grpc_port, http_port = claims.take(0), claims.take(0)
    claims.close()
    settings = {
        **tracing.plan(wanted, {}, up.collector_http).variables,
        "SHOAL_ROUTER_GRPC_PORT": str(grpc_port),
        "SHOAL_ROUTER_HTTP_PORT": str(http_port),
        "SHOAL_ROUTER_CONTROLLER": up.controller,
    }
    with _process([sys.executable, "-P", "-m", "services.router"], settings) as process:
        yield Variant(name, f"127.0.0.1:{grpc_port}", Clock(process.pid))


@contextlib.contextmanager
def _process(command: list[str], settings: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Ends with this process, however that ends. What it wrote is told when something Failed."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *command],
            env={**os.environ, "PYTHONPATH": str(_ROOT), **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            yield process
        except Failed as failed:
            log.seek(0)
            raise Failed(f"{failed}\n{log.read()[-2000:].decode(errors='replace')}") from failed
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _check(variant: Variant) -> None:
    """Waits until it answers, and compares an answer of every workload's size."""
    deadline = time.monotonic() + _START_WITHIN
    with grpc.insecure_channel(variant.address, options=_OPTIONS) as channel:
        infer: Any = channel.unary_unary(PATH)
        for workload in WORKLOADS:
            while True:
                try:
                    answer = infer(request(workload.floats), timeout=_START_WITHIN)
                    break
                except grpc.RpcError as error:
                    if time.monotonic() > deadline:
                        raise Failed(f"{variant.name} does not answer: {error}") from error
                    time.sleep(_POLL)
            if not is_right(workload.floats, answer):
                raise Failed(f"{variant.name} answers {workload.title} with other numbers")


def _version(address: str) -> str:
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ServerMetadata",
            request_serializer=service_pb2.ServerMetadataRequest.SerializeToString,
            response_deserializer=service_pb2.ServerMetadataResponse.FromString,
        )
        return str(ask(service_pb2.ServerMetadataRequest(), timeout=_START_WITHIN).version)


def _answered(metrics: str) -> int:
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=_START_WITHIN) as response:
        lines = response.read().decode().splitlines()
    name = "nv_inference_request_success{"
    rows = [line for line in lines if line.startswith(name) and f'model="{MODEL}"' in line]
    return sum(int(float(row.rpartition(" ")[2])) for row in rows)
