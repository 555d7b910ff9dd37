"""Calls to a running stack, and a sampler that watches it from outside."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from model_repository import examples
from model_repository.examples import Example
from services.common.status import error_info
from services.embedded.background import Announced, BackgroundStack
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from shoal.router.v1.router_service_pb2_grpc import RouterServiceStub

EXAMPLES = Path(examples.__file__).parent
ADMIN_HEADER = "triton-grpc-protocol-admin-key"


@dataclass
class Fleet:
    """A stack and its stubs."""

    stack: BackgroundStack

    @cached_property
    def client(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.stack.router_grpc)

    @cached_property
    def router(self) -> RouterServiceStub:
        return RouterServiceStub(grpc.insecure_channel(self.stack.router_grpc))

    @cached_property
    def registry(self) -> RegistryServiceStub:
        return RegistryServiceStub(grpc.insecure_channel(self.stack.registry))

    @cached_property
    def controller(self) -> ControllerServiceStub:
        return ControllerServiceStub(grpc.insecure_channel(self.stack.controller))

    @cached_property
    def inference(self) -> Any:
        """Return a stub of Triton's protocol, for what tritonclient hides."""
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        channel = grpc.insecure_channel(self.stack.router_grpc, options=options)
        return service_pb2_grpc.GRPCInferenceServiceStub(channel)

    router_grpc = property(lambda self: self.stack.router_grpc)
    router_http = property(lambda self: self.stack.router_http)
    registry_address = property(lambda self: self.stack.registry)
    controller_address = property(lambda self: self.stack.controller)
    otlp_http = property(lambda self: self.stack.collector_http)


def fleet(stack: BackgroundStack) -> Fleet:
    return Fleet(stack)


def restarted(before: Announced, name: str) -> Callable[[Announced], bool]:
    """Return what tells whether the part has been started again since, and all parts are ready."""
    return lambda now: now.all_ready() and now.starts(name) > before.starts(name)


def tensors(arrays: dict[str, np.ndarray]) -> list[triton.InferInput]:
    found = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


def infer(client: triton.InferenceServerClient, example: Example, **more: Any) -> list[str]:
    """Send an example to its version, and return what is wrong with the answer."""
    more.setdefault("model_version", str(example.version))
    result = client.infer(example.model, tensors(dict(example.inputs)), **more)
    return example.mismatches({name: result.as_numpy(name) for name in example.expected})


def example(model: str, version: int = 1) -> Example:
    return examples.EXAMPLES[model, version]()


def refusal(call: Callable[[], object]) -> tuple[str, Any, str]:
    """Return code, ErrorInfo or None, and text of a call that must fail."""
    try:
        answer = call()
    except triton.InferenceServerException as error:
        cause = error.__context__  # tritonclient keeps the status to itself
        if not isinstance(cause, grpc.RpcError):
            raise
    except grpc.RpcError as error:
        cause = error
    else:
        raise AssertionError(f"it was answered: {answer}")
    metadata: Any = cause.trailing_metadata() or ()
    return cause.code().name, error_info(tuple(metadata)), cause.details() or ""


def zipf(count: int, items: Sequence[Any], exponent: float, seed: int) -> list[Any]:
    """Draw `count` items; the one of rank k has a probability proportional to k ** -exponent."""
    weights = np.arange(1, len(items) + 1, dtype=float) ** -exponent
    random = np.random.default_rng(seed)
    return [items[i] for i in random.choice(len(items), count, p=weights / weights.sum())]


# --- from outside ---------------------------------------------------------------------------------


def admin_key(server: psutil.Process) -> str:
    """Return the admin key from the server's own command line.

    Raises LookupError if it has none, as in the moment in which it starts or ends.
    """
    for argument in server.cmdline():
        if "admin-key=" in argument:
            return argument.rpartition("admin-key=")[2]
    raise LookupError("no admin key on the server's command line")


@dataclass
class Samples:
    """The maxima seen on one server; bytes are proportional set sizes of its model processes."""

    most_units: int = 0
    most_bytes: int = 0
    most_settled_bytes: int = 0
    count: int = 0
    units_seen: set[tuple[str, str]] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)


@contextmanager
def sampled(
    stack: BackgroundStack, server: str, settled: Callable[[], bool], ensembles: frozenset[str]
) -> Iterator[Samples]:
    """Sample a server every 50 ms, through Triton's own index and the kernel alone.

    Sizes count for `most_settled_bytes` while `settled` is true. Ensembles hold no memory and take
    no place, so they are not counted.
    """
    samples = Samples()
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.05):
            try:
                _sample(stack, server, settled, ensembles, samples)
            except (grpc.RpcError, psutil.Error, LookupError) as error:
                samples.errors.append(repr(error))

    thread = threading.Thread(target=run, name="sampler")
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def _sample(
    stack: BackgroundStack,
    server: str,
    settled: Callable[[], bool],
    ensembles: frozenset[str],
    samples: Samples,
) -> None:
    process = psutil.Process(stack.announced().pid_of(server))
    with grpc.insecure_channel(stack.tritons[server]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        index = stub.RepositoryIndex(
            service_pb2.RepositoryIndexRequest(),
            metadata=((ADMIN_HEADER, admin_key(process)),),
            timeout=5,
        )
    present = {
        (row.name, row.version)
        for row in index.models
        if row.state in ("LOADING", "READY", "UNLOADING") and row.name not in ensembles
    }
    size = 0
    for stub_process in process.children():
        try:
            size += stub_process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess, ProcessLookupError):
            continue
    samples.count += 1
    samples.units_seen |= present
    samples.most_units = max(samples.most_units, len(present))
    samples.most_bytes = max(samples.most_bytes, size)
    if settled():
        samples.most_settled_bytes = max(samples.most_settled_bytes, size)
