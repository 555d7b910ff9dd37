"""Keeps the proxy's routes in step with the placement table.

A replica that is withdrawn gets nothing new from the proxy once its worker answers a probe by the
routes without it. The probe's line in the journal tells that all requests which were sent before
have been counted: from then on the requests in flight are known, as if the Router had sent them."""

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc
import structlog

from services.common.tasks import TaskScope
from services.router.control.placement_watch import PlacementWatch
from services.router.core.routing.lane import LaneRules, Place, held_over_grpc, places
from services.router.core.routing.table import Change
from services.router.lane.discovery import Discovery, Resources
from services.router.lane.edge import GRPC, HTTP
from services.router.lane.journal import Journal
from services.router.lane.probe import NoProxy, Probe
from services.router.lane.resources import (
    CLUSTER,
    LISTENER,
    ROUTES,
    Front,
    listeners,
    router_clusters,
    servers_cluster,
)
from services.router.lane.routes import Routes
from services.router.servers.cancellation import Cancellations
from services.router.waiting import within

SETTLE_SECONDS: Final = 3.0  # that a withdrawal waits for the proxy
_POLL_SECONDS: Final = 0.002  # between two probes
_ANSWER_SECONDS: Final = 0.05  # in which the proxy commonly takes new routes
_JOURNAL_SECONDS: Final = 0.5  # in which the proxy writes what it has noted
_ASK_SECONDS: Final = 5.0  # between two looks at the servers' releases

_log = structlog.get_logger(__name__)

#: The places of a model by kind of port, each with the version as a request names it.
_Places = Mapping[str, tuple[tuple[str, Place], ...]]
#: A kind of port, and the servers that are behind one name.
_Cluster = tuple[str, tuple[str, ...]]


class Lane:
    """The lane of one Router. `cancellations` knows which servers bear that a request is
    cancelled."""

    def __init__(
        self,
        watch: PlacementWatch,
        front: Front,
        rules: LaneRules,
        journal: Journal,
        cancellations: Cancellations,
    ) -> None:
        self._watch = watch
        self._front = front
        self._rules = rules
        self._journal = journal
        self._cancellations = cancellations
        self._discovery = Discovery()
        self._routes = {kind: Routes(kind) for kind in front.router}
        self._probes = {kind: Probe(address) for kind, address in front.probes.items()}
        #: What each model has in the lane.
        self._places: dict[str, _Places] = {}
        #: The addresses of each cluster of servers, by kind of port and the servers' names.
        self._clusters: dict[_Cluster, tuple[str, ...]] = {}
        #: Servers that survive any cancellation. It is not known of others.
        self._bearing: frozenset[str] = frozenset()
        self._readdressed = asyncio.Event()
        #: Names the revisions of this process.
        self._run = uuid.uuid4().hex[:8]
        self._revision = 0
        self._settled = 0
        self._probing = asyncio.Lock()
        self._probed = itertools.count(1)
        self._tasks = TaskScope("the lane")
        #: Changes that did not wait for the proxy any longer.
        self.overdue = 0
        watch.listen(self._change)

    async def serve(self, stack: AsyncExitStack, address: str) -> None:
        """Tell proxies their configuration at `address`, until the stack is closed. Raises OSError
        and RuntimeError."""
        self._journal.open()
        stack.callback(self._journal.close)
        for probe in self._probes.values():
            stack.callback(probe.close)
        stack.push_async_callback(self._tasks.close)
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        server.add_generic_rpc_handlers((self._discovery.handlers(),))
        server.add_insecure_port(address)
        self._discovery.offer(LISTENER, lambda: _serialized(listeners(self._front)))
        self._discovery.offer(CLUSTER, self._cluster_resources)
        self._discovery.offer(ROUTES, self._route_resources)
        self._update(self._all_models(), readdressed=True)
        await server.start()
        stack.push_async_callback(server.stop, 0.0)
        self._tasks.start(self._watch_proxies())
        self._tasks.start(self._watch_releases())

    async def drain(self, grace: float) -> None:
        """Have the proxy accept nothing more, and give the requests that it has under way `grace`
        seconds."""
        self._discovery.offer(LISTENER, dict)
        await within(grace, self._journal.until_idle())

    def __len__(self) -> int:
        """Return the number of models in the lane."""
        return len(self._places)

    @property
    def refused(self) -> int:
        """Configurations that a proxy refused."""
        return self._discovery.refused

    @property
    def proxies(self) -> int:
        """Proxies that are connected."""
        return len(self._discovery)

    def _change(self, change: Change | None) -> Awaitable[None] | None:
        """Take over a change to the table. Returns what to wait for until nothing new is sent to
        what it withdrew, or None if there is nothing to wait for."""
        if change is None:
            return None
        readdressed = change.whole or change.addresses or change.removed_servers
        if not readdressed:
            models: Iterable[str] = {*change.routes, *change.removed_models}
        else:
            models = self._all_models()
        if not self._update(models, readdressed=bool(readdressed)):
            return None
        return self._settle(self._revision)

    def _all_models(self) -> set[str]:
        return {*self._places, *(target.model for target in self._watch.table.ready)}

    def _update(self, models: Iterable[str], *, readdressed: bool) -> bool:
        """Work out the routes of `models` anew. Returns whether a route was taken away or replaced:
        what is only added need not be waited for."""
        taken = changed = False
        wanted: set[_Cluster] = set()
        for model in models:
            before = self._places.get(model, {})
            after = self._placed(model)
            if after == before:
                continue
            changed = True
            taken = taken or bool(before)
            if after:
                self._places[model] = after
            else:
                del self._places[model]
            for kind, routes in self._routes.items():
                found = after.get(kind, ())
                routes.update(model, found)
                wanted.update((kind, place.servers) for _, place in found)
        if readdressed or not wanted <= self._clusters.keys():
            self._address_clusters(wanted)
        if changed:
            self._tell_routes()
        return taken

    def _tell_routes(self) -> None:
        """Tell proxies the routes as they are now, as a new revision."""
        self._revision += 1
        self._discovery.offer(ROUTES, self._route_resources)

    def _placed(self, model: str) -> _Places:
        table = self._watch.table
        found = tuple(
            (version, place) for _, version, place in places(table, (model,), self._rules)
        )
        if not found:
            return {}
        placed = {}
        if HTTP in self._routes:
            placed[HTTP] = tuple(
                (version, place._replace(servers=servers))
                for version, place in found
                if (servers := tuple(s for s in place.servers if s in table.http_addresses))
            )
        placed[GRPC] = tuple(
            (version, place)
            for version, place in found
            if not held_over_grpc(place, self._bearing, self._rules)
        )
        return {kind: some for kind, some in placed.items() if some}

    def _address_clusters(self, wanted: Iterable[_Cluster]) -> None:
        """Add clusters, and learn the servers' addresses. None is removed while its servers are
        there: requests may be under way."""
        table = self._watch.table
        addresses = {GRPC: table.addresses, HTTP: table.http_addresses}
        for kind in self._routes:
            self._journal.name_servers(
                {address: server for server, address in addresses[kind].items()}
            )
        self._readdressed.set()
        clusters = {
            (kind, servers): tuple(addresses[kind][server] for server in servers)
            for kind, servers in {*wanted, *self._clusters}
            if all(server in addresses[kind] for server in servers)
        }
        if clusters != self._clusters:
            self._clusters = clusters
            self._discovery.offer(CLUSTER, self._cluster_resources)

    def _cluster_resources(self) -> Resources:
        found = router_clusters(self._front)
        for (kind, servers), addresses in self._clusters.items():
            cluster = servers_cluster(kind, servers, addresses, self._front)
            found[cluster.name] = cluster
        return _serialized(found)

    def _route_resources(self) -> Resources:
        name = self._name(self._revision)
        return {kind: routes.serialized(name) for kind, routes in self._routes.items()}

    def _name(self, revision: int) -> str:
        return f"{self._run}-{revision}"

    async def _settle(self, revision: int) -> None:
        """Wait until the proxy goes by `revision`, and all requests that it sent before are
        counted."""
        if self._settled >= revision:
            return
        if not await within(SETTLE_SECONDS, self._reach(revision)):
            # Whatever it still sends to what is gone is answered by the Router.
            self.overdue += 1
            _log.warning("the proxy does not follow", revision=revision)

    async def _reach(self, revision: int) -> None:
        async with self._probing:
            while self._settled < revision:
                await within(_ANSWER_SECONDS, self._accepted())
                reached = min([await self._ask(kind) for kind in self._probes], default=revision)
                self._settled = max(self._settled, reached)
                if self._settled < revision:
                    await asyncio.sleep(_POLL_SECONDS)

    async def _accepted(self) -> None:
        """Wait until every proxy has accepted the newest routes."""
        while not self._discovery.current(ROUTES):
            await self._discovery.answered.wait()

    async def _ask(self, kind: str) -> int:
        """Return the revision that the proxy goes by, once the journal has been read as far. If
        there is no proxy, that is the newest one."""
        newest = self._revision
        name = f"{self._run}-{next(self._probed)}"
        try:
            answer = await self._probes[kind].ask(name)
        except NoProxy:
            self._journal.forget()
            return newest
        await within(_JOURNAL_SECONDS, self._journal.read_until(name))
        run, _, revision = answer.partition("-")
        return int(revision) if run == self._run else 0

    async def _watch_proxies(self) -> None:
        """Notice when the proxy is gone: nothing of it is under way any more."""
        connected = 0
        while True:
            before, connected = connected, len(self._discovery)
            if connected < before and self._probes:
                await self._ask(next(iter(self._probes)))
            await self._discovery.answered.wait()

    async def _watch_releases(self) -> None:
        """Look again and again which servers survive any cancellation."""
        while True:
            self._readdressed.clear()
            addresses = dict(self._watch.table.addresses)
            borne = await asyncio.gather(*map(self._cancellations.bears, addresses.values()))
            bearing = frozenset(
                server for server, bears in zip(addresses, borne, strict=True) if bears
            )
            if bearing != self._bearing:
                self._bearing = bearing
                self._update(self._all_models(), readdressed=False)
            await within(_ASK_SECONDS, self._readdressed.wait())


def _serialized(resources: Mapping[str, Any]) -> Resources:
    return {name: message.SerializeToString() for name, message in resources.items()}
