"""A Controller's service in this process, over the Tritons that a test has, without a Registry."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from structlog.testing import capture_logs

from services.common import channels
from services.common.caller import CallerPolicy
from services.common.rpc import RpcServer
from services.controller.api.servicer import OPEN_METHODS, SERVICE
from services.controller.assembly import acting
from services.controller.core.entities import Server
from services.controller.core.limits import Limits
from services.controller.core.view import FleetView
from services.controller.loop import EngineLoop
from services.controller.registry.catalogue import Catalogue
from services.controller.settings import Settings
from services.controller.triton.client import Triton
from shoal.controller.v1.controller_service_pb2_grpc import (
    ControllerServiceStub,
    add_ControllerServiceServicer_to_server,
)
from shoal.names import model_name, version_name
from shoal.registry.v1 import types_pb2 as registry
from tests.support.triton_models import wire

SECONDS = 20.0


@dataclass(frozen=True)
class Alone:
    """`stub`: of grpc.aio."""

    loop: EngineLoop
    view: FleetView
    address: str
    stub: Any


def entry(model: str, *versions: int, **more: Any) -> registry.CatalogEntry:
    """An approved Python model, the newest version its default; `more`: fields of each version."""
    made = {"config": wire(model), "state": registry.VERSION_STATE_APPROVED, **more}
    return registry.CatalogEntry(
        model=registry.Model(name=model_name(model), default_version=max(versions)),
        versions=[
            registry.ModelVersion(name=version_name(model, version), **made) for version in versions
        ],
    )


def settings(**more: Any) -> Settings:
    """Settings with short intervals and timeouts; the servers are given apart from them."""
    times = dict.fromkeys(("load_timeout", "unload_timeout", "probe_timeout", "max_wait"), SECONDS)
    return Settings(**{"health_interval": 0.2, **times, **more})


@asynccontextmanager
async def controller(
    servers: Sequence[Server] = (),
    entries: Iterable[registry.CatalogEntry] = (),
    keys: Mapping[str, str] | None = None,
    *,
    epoch: int = 1,
    port: int = 0,
    limits: Limits | None = None,
) -> AsyncIterator[Alone]:
    """A Controller that answers. `keys`: each server's admin key."""
    catalogue = Catalogue()
    catalogue.replace(entries, (), all_=True)
    async with AsyncExitStack() as stack:
        # Its log lines would stand between what a command prints.
        stack.enter_context(capture_logs())
        tritons = {
            server.id: await stack.enter_async_context(
                Triton(server.id, server.address, (keys or {})[server.id])
            )
            for server in servers
        }
        parts = await stack.enter_async_context(
            acting(
                settings(),
                servers,
                limits or Limits(),
                tritons,
                catalogue,
                epoch=epoch,
                measured=False,
            )
        )
        rpc = RpcServer(CallerPolicy(), open_methods=OPEN_METHODS)
        rpc.announce(SERVICE)
        add_ControllerServiceServicer_to_server(parts.servicer, rpc.services)
        address = f"127.0.0.1:{await rpc.start('127.0.0.1', port)}"
        stack.push_async_callback(rpc.stop, 0)
        await rpc.set_ready(True)
        channel = await stack.enter_async_context(channels.control(address))
        yield Alone(parts.loop, parts.view, address, ControllerServiceStub(channel))
