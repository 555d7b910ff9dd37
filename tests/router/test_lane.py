"""When a withdrawal is acknowledged that the lane's proxy has to follow first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.common.rpc import Limits
from services.router.control.placement_watch import PlacementWatch
from services.router.core.routing.lane import LaneRules
from services.router.core.routing.routes import Replica, Route, Target, VersionRoute
from services.router.core.routing.table import Change, Revision, Table
from services.router.lane import lane as module
from services.router.lane.edge import GRPC
from services.router.lane.journal import Journal
from services.router.lane.lane import Lane
from services.router.lane.probe import NoProxy
from services.router.lane.resources import CLUSTER, LISTENER, ROUTES, Front
from services.router.lane.xds import message
from tests.support.lane_proxy import Proxy, proxy
from tests.support.waiting import until

M1 = Target("m", 1)
ON_T0 = Replica("t0", M1)
ADDRESSES = {"t0": "127.0.0.1:1", "t1": "127.0.0.1:2"}


class Probed:
    """A probe of a proxy that goes by the revision `at`. Its line in the journal comes at once, or
    when `line` is called."""

    def __init__(self, journal: Journal, *, prompt: bool = True) -> None:
        self._journal = journal
        self._prompt = prompt
        self.at = ""
        self.away = False
        self.stopped = asyncio.Event()
        self.stopped.set()
        self.asked: list[str] = []

    async def ask(self, name: str) -> str:
        self.asked.append(name)
        await self.stopped.wait()
        await asyncio.sleep(0)
        if self.away:
            raise NoProxy
        if self._prompt:
            self.line()
        return self.at

    def line(self) -> None:
        self._journal.take(f"PROBE /{self.asked[-1]}".encode())

    def close(self) -> None:
        """As a Probe has it."""


OPEN = LaneRules(any_release=True)


class Bearing:
    """Knows which servers bear a cancellation, by address."""

    def __init__(self) -> None:
        self.borne: set[str] = set()

    async def bears(self, address: str) -> bool:
        return address in self.borne


class World:
    """A lane, without a proxy unless a test brings one."""

    def __init__(self, lane: Lane, watch: PlacementWatch, journal: Journal, address: str) -> None:
        self.lane = lane
        self.watch = watch
        self.journal = journal
        self.address = address
        self.probe = Probed(journal)
        self.bearing = Bearing()
        self.number = 0

    def change(self, *servers: str, whole: bool = False, **models: tuple[str, ...]) -> Any:
        """Have version 1 of `m`, or of each of `models`, on `servers`. Returns what the lane wants
        to be waited for."""
        self.number += 1
        placed = models or {"m": servers}
        change = Change(
            Revision(1, self.number),
            whole,
            {name: route(*where) for name, where in placed.items()},
            ADDRESSES if whole else {},
        )
        self.watch.table.apply(change)
        return self.lane._change(change)

    def revision(self) -> str:
        """The revision that the proxy has to reach."""
        return self.lane._name(self.lane._revision)


def route(*servers: str) -> Route:
    return Route(default_version=1, versions={1: VersionRoute("", servers, decoupled=False)})


@asynccontextmanager
async def world(folder: Path, port: int, rules: LaneRules = OPEN) -> AsyncIterator[World]:
    watch = PlacementWatch({}, "router-test", Table(), None)
    journal = Journal(
        folder / "journal", watch.in_use.begin, lambda replica, *_: watch.in_use.end(replica)
    )
    front = Front(
        grpc="127.0.0.1:3",
        http="127.0.0.1:4",
        probes={GRPC: "127.0.0.1:5"},
        router={GRPC: "127.0.0.1:6"},
        journal=str(folder / "journal"),
        trace_ratio=0.0,
        router_workers=1,
        max_message=1 << 20,
        max_body=1 << 20,
        max_json=1 << 20,
        limits=Limits(),
    )
    bearing: Any = Bearing()
    lane = Lane(watch, front, rules, journal, bearing)
    made = World(lane, watch, journal, f"127.0.0.1:{port}")
    made.bearing = bearing
    probes: Any = lane._probes
    probes[GRPC] = made.probe
    async with AsyncExitStack() as stack:
        made.change("t0", whole=True)
        await lane.serve(stack, made.address)
        yield made


@pytest.fixture
async def at(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[World]:
    async with world(tmp_path, unused_tcp_port) as made:
        yield made


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0.005)


def entries(one: Proxy) -> dict[str, Any]:
    """The routes that a proxy was told last, by mark."""
    (told,) = one.last(ROUTES)
    config = type(message("envoy.config.route.v3.RouteConfiguration")).FromString(told)
    return dict(config.virtual_hosts[0].matcher.matcher_tree.exact_match_map.map)


async def test_nothing_need_be_waited_for_that_only_adds(at: World) -> None:
    assert at.change(m=("t0",), other=("t1",)) is None
    assert at.lane._change(None) is None
    assert len(at.lane) == 2


@pytest.mark.parametrize("servers", [(), ("t1",), ("t0", "t1")])
async def test_a_change_of_places_waits_for_the_proxy(at: World, servers: tuple[str, ...]) -> None:
    at.probe.at = at.revision()
    waiting = asyncio.ensure_future(at.change(*servers))
    await turns()
    assert at.probe.asked
    assert not waiting.done(), "the proxy goes by the routes before"
    at.probe.at = at.revision()
    await asyncio.wait_for(waiting, 1)
    assert at.lane.overdue == 0


async def test_the_lines_before_the_probes_are_read_first(at: World) -> None:
    at.probe._prompt = False
    waiting = asyncio.ensure_future(at.change())
    at.probe.at = at.revision()
    await until(lambda: at.probe.asked)
    await turns(4)
    assert not waiting.done()
    at.journal.take(b"UpstreamPoolReady m:1 127.0.0.1:1 - 0 - 12")
    at.probe.line()
    await asyncio.wait_for(waiting, 1)
    assert at.watch.in_use.count(ON_T0) == 1, "it is known to be in use by then"


async def test_several_changes_are_settled_by_one_probe(at: World) -> None:
    first = asyncio.ensure_future(at.change())
    at.change("t0")
    last = asyncio.ensure_future(at.change())
    await turns()
    at.probe.at = at.revision()
    await asyncio.wait_for(asyncio.gather(first, last), 1)
    asked = len(at.probe.asked)
    await asyncio.wait_for(at.lane._settle(1), 1)
    assert len(at.probe.asked) == asked


async def test_no_proxy_need_be_waited_for_that_is_not_there(at: World) -> None:
    at.journal.take(b"UpstreamPoolReady m:1 127.0.0.1:1 - 0 - 12")
    assert at.watch.in_use.count(ON_T0) == 1
    at.probe.away = True
    await asyncio.wait_for(at.change(), 1)
    assert at.watch.in_use.count(ON_T0) == 0, "what it had under way is over"


async def test_a_proxy_that_does_not_follow_holds_nobody_up_for_long(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.2)
    at.probe.at = at.revision()
    await asyncio.wait_for(at.change(), 1)
    assert at.lane.overdue == 1
    at.probe.stopped.clear()  # it takes connections and says nothing
    await asyncio.wait_for(at.change("t0") or at.change(), 1)
    assert at.lane.overdue == 2
    at.probe.stopped.set()
    at.change("t0")
    waiting = at.change()
    at.probe.at = at.revision()
    await asyncio.wait_for(waiting, 1)
    assert at.lane.overdue == 2


async def test_an_older_proxys_revision_of_the_same_number_is_anothers(at: World) -> None:
    waiting = asyncio.ensure_future(at.change())
    at.probe.at = f"another-{at.lane._revision + 5}"
    await turns()
    assert not waiting.done()
    at.probe.at = at.revision()
    await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize("answer", ["", "nonsense"])
async def test_a_proxy_without_routes_is_waited_for(at: World, answer: str) -> None:
    waiting = asyncio.ensure_future(at.change())
    at.probe.at = answer
    await turns()
    assert not waiting.done()
    at.probe.at = at.revision()
    await asyncio.wait_for(waiting, 1)


async def test_a_proxy_is_told_the_routes_and_the_clusters_before_them(at: World) -> None:
    async with proxy(at.address) as one:
        await one.subscribe(CLUSTER, LISTENER, ROUTES)
        await one.until_told(3)
        assert one.kinds()[0] == CLUSTER
        assert {"/m", "1/m"} <= entries(one).keys()
        told = len(one.told)
        at.change(m=("t0",), other=("t1",))
        await one.until_told(told + 2)
        assert one.kinds()[told:] == [CLUSTER, ROUTES], "a server of its own is a new cluster"
        assert {"/other", "1/other"} <= entries(one).keys()
        at.probe.at = at.revision()
        waiting = at.change(m=(), other=("t1",))
        assert waiting is not None
        waiting.close()
        await until(lambda: "/m" not in entries(one))


async def test_what_a_lost_proxy_had_under_way_is_over(at: World) -> None:
    async with proxy(at.address) as one:
        await one.subscribe(CLUSTER, LISTENER, ROUTES)
        await one.until_told(3)
        at.journal.take(b"UpstreamPoolReady m:1 127.0.0.1:1 - 0 - 12")
        assert at.watch.in_use.count(ON_T0) == 1
        at.probe.away = True
    await until(lambda: at.watch.in_use.count(ON_T0) == 0)


async def test_a_proxy_that_only_comes_back_keeps_what_it_has_under_way(at: World) -> None:
    async with proxy(at.address) as one:
        await one.subscribe(ROUTES)
        await one.until_told(1)
        at.journal.take(b"UpstreamPoolReady m:1 127.0.0.1:1 - 0 - 12")
    await until(lambda: at.probe.asked)
    await turns(4)
    assert at.watch.in_use.count(ON_T0) == 1


async def test_a_server_gets_nothing_over_grpc_until_it_is_known_to_bear_cancellations(
    tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ASK_SECONDS", 0.01)
    async with world(tmp_path, unused_tcp_port, LaneRules()) as at, proxy(at.address) as one:
        await one.subscribe(CLUSTER, LISTENER, ROUTES)
        await one.until_told(3)
        await turns()
        assert "/m" not in entries(one)
        at.bearing.borne = set(ADDRESSES.values())
        await until(lambda: "/m" in entries(one))


async def test_draining_takes_the_listeners_away_and_waits(at: World) -> None:
    at.journal.take(b"UpstreamPoolReady m:1 127.0.0.1:1 - 0 - 12")
    async with proxy(at.address) as one:
        await one.subscribe(CLUSTER, LISTENER, ROUTES)
        await one.until_told(3)
        assert one.last(LISTENER)
        draining = asyncio.ensure_future(at.lane.drain(5.0))
        await until(lambda: one.last(LISTENER) == [])
        assert not draining.done()
        at.journal.take(b"UpstreamEnd m:1 127.0.0.1:1 0 200 1500 12")
        await asyncio.wait_for(draining, 1)
