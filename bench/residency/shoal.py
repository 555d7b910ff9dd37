"""The other side: a running stack, asked as any client asks it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from bench.load import Failed
from bench.residency.models import Model, is_right, request
from bench.workloads import INFER
from services.embedded.background import BackgroundStack
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import types_pb2
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from shoal.registry.v1.types_pb2 import Footprint

_WITHIN: Final = 60.0  # seconds for any one thing
# A channel that waits a second before it looks for a Controller that came back measures itself.
_EAGER: Final = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200))


class Happened(NamedTuple):
    """An event of the Controller. `at`: seconds of the epoch. `kind`: such as `LOADING`."""

    at: float
    kind: str
    model: str


class Shoal:
    def __init__(self, stack: BackgroundStack) -> None:
        self.stack = stack
        self.address = stack.router_grpc
        self._channel = grpc.insecure_channel(stack.router_grpc)
        self._infer: Any = self._channel.unary_unary(INFER)
        self._control = grpc.insecure_channel(stack.controller, options=_EAGER)
        self.controller = ControllerServiceStub(self._control)
        self._catalogue = grpc.insecure_channel(stack.registry)
        self.registry = RegistryServiceStub(self._catalogue)

    def close(self) -> None:
        self._channel.close()
        self._control.close()
        self._catalogue.close()

    def infer(self, model: Model) -> None:
        """Raises Failed when the answer is another one, grpc.RpcError."""
        if not is_right(model, self._infer(request(model), timeout=_WITHIN)):
            raise Failed(f"Shoal answers {model.name} with other numbers")

    def evict(self, model: Model) -> None:
        """Returns once it is gone."""
        name = f"models/{model.name}"
        self.controller.EvictModel(wire.EvictModelRequest(name=name), timeout=_WITHIN)

    def pin(self, model: Model) -> None:
        name = f"models/{model.name}"
        self.controller.PinModel(wire.PinModelRequest(name=name), timeout=_WITHIN)

    def present(self) -> set[str]:
        """Names of what is anywhere between queued and gone."""
        asked = wire.ListReplicasRequest(page_size=1000)
        found = self.controller.ListReplicas(asked, timeout=_WITHIN).replicas
        failed = types_pb2.REPLICA_STATE_FAILED
        return {one.version.split("/")[1] for one in found if one.state != failed}

    def happened(self, since: float, most: int = 100) -> list[Happened]:
        """The last `most` events not older than `since` (seconds of the epoch), in order."""
        asked = wire.ListEventsRequest(page_size=min(most, 1000))
        events: list[types_pb2.Event] = []
        while len(events) < most:
            page = self.controller.ListEvents(asked, timeout=_WITHIN)
            events += page.events
            asked.page_token = page.next_page_token
            if not page.next_page_token:
                break
        found = [
            Happened(
                event.time.ToNanoseconds() / 1e9,
                types_pb2.EventKind.Name(event.kind).removeprefix("EVENT_KIND_"),
                event.version.split("/")[1] if event.version else "",
            )
            for event in reversed(events)
        ]
        return [one for one in found if one.at >= since]

    def footprints(self) -> dict[str, Footprint]:
        """What is known of the models whose size and load time have been learned, by name."""
        asked = registry.ListFootprintsRequest(page_size=1000)
        found = self.registry.ListFootprints(asked, timeout=_WITHIN).footprints
        return {
            one.version.split("/")[1]: one
            for one in found
            if one.memory and one.HasField("load_duration")
        }


@contextlib.contextmanager
def running(repository: Path, *arguments: str, **variables: str) -> Iterator[Shoal]:
    """`variables`: of the environment, such as SHOAL_CONTROLLER_LOADS_PER_SERVER. Raises Failed."""
    try:
        with (
            BackgroundStack(
                f"--repository={repository}", "--no-otlp", *arguments, environment=variables
            ) as stack,
            contextlib.closing(Shoal(stack)) as shoal,
        ):
            yield shoal
    except (TimeoutError, grpc.RpcError) as error:
        raise Failed(f"Shoal: {error}") from error
