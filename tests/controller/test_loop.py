"""The engine and its hands together, on a real Triton: no Registry, no Router."""

import asyncio
import os
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from services.controller import loop as loop_module
from services.controller.assembly import Acting, acting
from services.controller.core import events as ev
from services.controller.core.entities import ReplicaKey, Server, Unit
from services.controller.core.events import Kind
from services.controller.core.limits import Limits
from services.controller.loop import EngineLoop
from services.controller.measurement.footprint_watch import Remote
from services.controller.measurement.footprints import RAM
from services.controller.registry.catalogue import Catalogue
from services.controller.telemetry.metrics import FleetMetrics
from services.controller.triton.client import Triton
from shoal.controller.v1 import types_pb2 as kinds
from shoal.names import model_name, version_name
from shoal.registry.v1 import types_pb2 as registry
from tests.support.controller import settings
from tests.support.triton_direct import DirectTriton, triton_direct, triton_python
from tests.support.triton_models import ask, pids, wire, write

SECONDS = 20.0
HANGS = 3.0  # seconds after which a load does
GIB = 1 << 30
MODELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def triton_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    models = tmp_path_factory.mktemp("models")
    for name in MODELS:
        write(models, name)
    write(models, "hangs", initialize="time.sleep(5)")
    subprocess.run([triton_python(), "-m", "compileall", "-q", models], check=True)
    folder = tmp_path_factory.mktemp("server")
    with triton_direct(folder, models, id=f"direct-{secrets.token_hex(4)}") as running:
        yield running


@dataclass
class Controller:
    parts: Acting
    server: Server

    @property
    def loop(self) -> EngineLoop:
        return self.parts.loop

    async def resident(self, unit: Unit, seconds: float = SECONDS) -> ev.Granted | ev.Refused:
        deadline = time.monotonic() + seconds
        answer = await self.loop.ask(partial(ev.ResidentWanted, unit=unit, deadline=deadline))
        assert not isinstance(answer, ev.Evicted)
        return answer

    async def until(self, holds: Callable[[], object]) -> None:
        if holds():
            return
        async with asyncio.timeout(SECONDS):
            async for _ in self.loop.journal.follow(0):
                if holds():
                    return

    def told(self, kind: Kind, about: str = "") -> list[kinds.Event]:
        wanted = kinds.EventKind.Value(f"EVENT_KIND_{kind.name}")
        return [event for event in self.loop.journal.newest(about) if event.kind == wanted]

    def metrics(self) -> dict[str, float]:
        """Samples by name, with their labels' values."""
        collectors = CollectorRegistry()
        collectors.register(FleetMetrics(self.parts.view, self.parts.journal))
        return {
            " ".join((sample.name, *sample.labels.values())): sample.value
            for family in collectors.collect()
            for sample in family.samples
        }


def catalogue(*names: str) -> Catalogue:
    found = Catalogue()
    for name in names:
        version = registry.ModelVersion(
            name=version_name(name, 1),
            state=registry.VERSION_STATE_APPROVED,
            config=wire(name),
            config_digest="d",
        )
        entry = registry.CatalogEntry(
            model=registry.Model(name=model_name(name), default_version=1), versions=[version]
        )
        found.replace([entry], (), all_=False)
    return found


@asynccontextmanager
async def controller(
    running: DirectTriton,
    limits: Limits | None = None,
    *,
    local: bool = True,
    load_within: float = SECONDS,
    **about: object,
) -> AsyncIterator[Controller]:
    """All of a Controller that needs no other service."""
    server = Server(running.spec.id, running.address, **about)  # type: ignore[arg-type]
    timing = settings(load_timeout=load_within, health_interval=0.1, measure_interval=0.1)
    url = f"http://127.0.0.1:{running.spec.metrics_port}/metrics"
    async with (
        Triton(server.id, server.address, running.spec.admin_secret) as triton,
        acting(
            timing,
            [server],
            limits or Limits(),
            {server.id: triton},
            catalogue(*MODELS, "hangs"),
            epoch=1,
            remotes={} if local else {server.id: Remote(triton, url)},
        ) as parts,
    ):
        one = Controller(parts, server)
        yield one
        for unit in [Unit(name, 1) for name in (*MODELS, "hangs")]:
            await parts.loop.ask(partial(ev.EvictionWanted, units=(unit,)))


@pytest.mark.triton
async def test_a_process_that_dies_is_replaced_though_nobody_asks(
    triton_server: DirectTriton,
) -> None:
    unit = Unit("a", 1)
    async with controller(triton_server) as one:
        assert isinstance(await one.resident(unit), ev.Granted)
        pid = min(pids(triton_server, "a")[1])
        os.kill(pid, signal.SIGKILL)
        await one.until(lambda: one.told(Kind.UNLOADED, "models/a"))
        (broken,) = one.told(Kind.BROKEN)
        assert "process" in broken.reason
        assert isinstance(await one.resident(unit), ev.Granted)
        assert ask(triton_server, "a", 1) == [1.0, 2.0]
        assert one.metrics()["shoal_controller_events_total broken"] == 1
        assert one.metrics()["shoal_evictions_total broken"] == 1


@pytest.mark.triton
async def test_a_load_that_hangs_is_visible_and_no_other_waits(
    triton_server: DirectTriton,
) -> None:
    async with controller(triton_server, load_within=HANGS) as one:
        hanging = asyncio.ensure_future(one.resident(Unit("hangs", 1)))
        assert isinstance(await one.resident(Unit("b", 1)), ev.Granted)
        refused = await hanging
        assert isinstance(refused, ev.Refused)
        assert "hangs:1 is still LOADING after 3 s" in str(refused.error)
        assert isinstance(await one.resident(Unit("c", 1)), ev.Granted)
        assert one.metrics()["shoal_load_backoffs"] == 1
        await one.until(lambda: one.told(Kind.UNLOADED, "models/hangs"))


@pytest.mark.triton
async def test_a_load_of_unknown_size_that_hangs_keeps_no_other_from_loading(
    triton_server: DirectTriton,
) -> None:
    budget = {"ram": 4 * GIB}
    patience = Limits(slow_load_seconds=0.5)
    async with controller(triton_server, patience, budget=budget) as alone:
        async with asyncio.TaskGroup() as tasks:
            hanging = tasks.create_task(alone.resident(Unit("hangs", 1)))
            await alone.until(lambda: alone.told(Kind.LOADING, "models/hangs"))
            waiting = tasks.create_task(alone.resident(Unit("a", 1)))
            assert isinstance(await waiting, ev.Granted)
            assert not hanging.done()
        assert isinstance(hanging.result(), ev.Granted), "it hung for a while only"


@pytest.mark.triton
async def test_who_waits_is_answered_by_the_deadline_and_not_at_the_next_tick(
    triton_server: DirectTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "TICK_SECONDS", 3600.0)
    async with controller(triton_server, load_within=HANGS) as one:
        refused = await asyncio.wait_for(one.resident(Unit("hangs", 1), 0.3), SECONDS)
        assert isinstance(refused, ev.Refused)
        assert "deadline" in str(refused.error)
        await one.until(lambda: one.told(Kind.UNLOADED, "models/hangs"))


@pytest.mark.triton
async def test_a_server_that_keeps_what_its_models_gave_back_is_to_be_restarted(
    triton_server: DirectTriton,
) -> None:
    async with controller(triton_server, budget={RAM: GIB}) as one:
        assert isinstance(await one.resident(Unit("a", 1)), ev.Granted)
        id_ = one.server.id
        one.loop.feed(ev.Measured(id_, {}, {RAM: 2 * GIB}))
        await one.until(lambda: one.parts.view.servers[id_].restart_wanted)
        assert not pids(triton_server, "a")
        *_, drained = one.told(Kind.SERVER_DRAINING)
        assert drained.reason.endswith("not given back by models that are gone")
        assert one.metrics()[f"shoal_server_draining {id_}"] == 1


@pytest.mark.triton
async def test_the_metrics_of_what_is_resident(triton_server: DirectTriton) -> None:
    budget, soft = {RAM: GIB}, {RAM: GIB // 2}
    async with controller(triton_server, budget=budget, soft=soft) as one:
        id_ = one.server.id
        assert isinstance(await one.resident(Unit("a", 1)), ev.Granted)
        found = one.metrics()
        assert found[f"shoal_server_healthy {id_}"] == 1
        assert found[f"shoal_server_memory_bytes {id_} ram budget"] == GIB
        assert found[f"shoal_server_memory_bytes {id_} ram soft_limit"] == GIB // 2
        assert 0 < found[f"shoal_server_memory_bytes {id_} ram reserved"] <= GIB
        assert found[f"shoal_replicas {id_} ready"] == 1
        assert found["shoal_resident_versions"] == 1
        assert found["shoal_copies"] == 0
        assert found["shoal_waiters"] == 0
        assert found["shoal_predictions_total"] == found["shoal_predictions_hit_total"] == 0
        await one.loop.ask(partial(ev.EvictionWanted, units=(Unit("a", 1),)))
        assert one.metrics()["shoal_evictions_total request"] == 1


@pytest.mark.triton
async def test_a_server_elsewhere_is_measured_by_what_it_tells(
    triton_server: DirectTriton,
) -> None:
    async with controller(triton_server, local=False, budget={RAM: 64 * GIB}) as one:
        assert isinstance(await one.resident(Unit("a", 1)), ev.Granted)
        servers = one.parts.view.servers
        async with asyncio.timeout(SECONDS):
            while RAM not in servers[one.server.id].measured:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert servers[one.server.id].measured[RAM] < 64 * GIB


@pytest.mark.triton
async def test_the_queues_of_a_server_are_known(triton_server: DirectTriton) -> None:
    key = ReplicaKey(triton_server.spec.id, Unit("b", 1))
    async with controller(triton_server) as one:
        assert isinstance(await one.resident(key.unit), ev.Granted)
        async with asyncio.timeout(SECONDS):
            while key not in one.loop.engine.fleet.pressures.queues:
                await asyncio.to_thread(ask, triton_server, "b", 1)
        assert 0 <= one.loop.engine.fleet.pressures.queues[key] < SECONDS
