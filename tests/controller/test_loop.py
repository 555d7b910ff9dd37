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

import pytest
from prometheus_client import CollectorRegistry

from services.controller import loop as loop_module
from services.controller.catalog import Catalog
from services.controller.changes import Changes, Timeouts
from services.controller.core import events as ev
from services.controller.core.entities import ReplicaKey, Server, Unit
from services.controller.core.events import Kind
from services.controller.core.limits import Limits
from services.controller.core.residency import Engine
from services.controller.footprints import RAM
from services.controller.gpus import Gpus
from services.controller.journal import Journal
from services.controller.loop import Loop
from services.controller.measurement import FootprintWatch, Remote
from services.controller.metrics import FleetMetrics
from services.controller.placements import Placements
from services.controller.processes import Processes
from services.controller.queues import QueueTimes
from services.controller.servers import ServerWatch
from services.controller.statistics_watch import StatisticsWatch
from services.controller.triton import Triton
from shoal.controller.v1 import types_pb2 as kinds
from shoal.names import model_name, version_name
from shoal.registry.v1 import types_pb2 as registry
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
    loop: Loop
    server: Server

    async def resident(self, unit: Unit, seconds: float = SECONDS) -> ev.Granted | ev.Refused:
        deadline = time.monotonic() + seconds
        answer = await self.loop.ask(ev.ResidentWanted, unit=unit, deadline=deadline)
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
        collectors.register(FleetMetrics(self.loop.engine.fleet, self.loop.journal))
        return {
            " ".join((sample.name, *sample.labels.values())): sample.value
            for family in collectors.collect()
            for sample in family.samples
        }


def catalog(*names: str) -> Catalog:
    found = Catalog()
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
    now = time.monotonic()
    engine = Engine(limits or Limits(), [server], now, now)
    known = catalog(*MODELS, "hangs")
    async with (
        Triton(server.id, server.address, running.spec.admin_secret) as triton,
        asyncio.TaskGroup() as tasks,
    ):
        tritons = {server.id: triton}
        processes = Processes({server.id: server.address} if local else {}, Gpus())
        url = f"http://127.0.0.1:{running.spec.metrics_port}/metrics"
        remotes = {} if local else {server.id: Remote(triton, url)}
        timeouts = Timeouts(load=load_within, unload=SECONDS)
        changes = Changes(tritons, known, processes, timeouts, lambda id_: watch.verify())
        placements = Placements(engine.fleet, known, 1)
        loop = Loop(
            engine,
            known,
            placements,
            Journal(),
            tasks,
            changes,
            measure=lambda id_: footprints.measure(id_),
        )
        footprints = FootprintWatch(loop, processes, tritons, remotes, 0.1)
        watch = ServerWatch(server, triton, loop, interval=0.1, selfcheck="")
        statistics = StatisticsWatch(engine.fleet, tritons, known)
        loop.catalog_changed(known.entries)
        running_tasks = [
            tasks.create_task(work)
            for work in (
                loop.tick(),
                watch.run(),
                footprints.run(),
                statistics.run(QueueTimes(loop.feed).seen),
            )
        ]
        one = Controller(loop, server)
        try:
            yield one
            for unit in [Unit(name, 1) for name in (*MODELS, "hangs")]:
                await loop.ask(ev.EvictionWanted, units=(unit,))
        finally:
            for task in running_tasks:
                task.cancel()


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
        await one.until(lambda: one.loop.engine.fleet.servers[id_].restart_wanted)
        assert not pids(triton_server, "a")
        *_, drained = one.told(Kind.SERVER_DRAINING)
        assert drained.reason.endswith("not given back by models that are gone")
        assert one.metrics()[f"shoal_server_draining {id_}"] == 1


@pytest.mark.triton
async def test_the_metrics_of_what_is_resident(triton_server: DirectTriton) -> None:
    about = {"budget": {RAM: GIB}, "soft": {RAM: GIB // 2}}
    async with controller(triton_server, **about) as one:
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
        await one.loop.ask(ev.EvictionWanted, units=(Unit("a", 1),))
        assert one.metrics()["shoal_evictions_total request"] == 1


@pytest.mark.triton
async def test_a_server_elsewhere_is_measured_by_what_it_tells(
    triton_server: DirectTriton,
) -> None:
    async with controller(triton_server, local=False, budget={RAM: 64 * GIB}) as one:
        assert isinstance(await one.resident(Unit("a", 1)), ev.Granted)
        fleet = one.loop.engine.fleet
        async with asyncio.timeout(SECONDS):
            while RAM not in fleet.servers[one.server.id].measured:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert fleet.servers[one.server.id].measured[RAM] < 64 * GIB


@pytest.mark.triton
async def test_the_queues_of_a_server_are_known(triton_server: DirectTriton) -> None:
    key = ReplicaKey(triton_server.spec.id, Unit("b", 1))
    async with controller(triton_server) as one:
        assert isinstance(await one.resident(key.unit), ev.Granted)
        async with asyncio.timeout(SECONDS):
            while key not in one.loop.engine.fleet.pressures.queues:
                await asyncio.to_thread(ask, triton_server, "b", 1)
        assert 0 <= one.loop.engine.fleet.pressures.queues[key] < SECONDS
