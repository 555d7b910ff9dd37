"""An Envoy that hears of its routes as the lane's does, or from files instead. Nothing asks it."""

import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
from google.protobuf import json_format

from bench.load import Failed
from services.common.rpc import Limits
from services.embedded import lane
from services.embedded.ports import LOOPBACK, pick
from services.router.lane import resources
from services.router.lane.discovery import Discovery, Resources
from services.router.lane.edge import GRPC, HTTP
from services.router.lane.probe import NoProxy, Probe
from services.router.lane.resources import CLUSTER, LISTENER, ROUTES, Front
from services.router.lane.routes import Routes
from services.router.lane.xds import TYPE, message

SERVERS: Final = ("triton-0", "triton-1")
KINDS: Final = (GRPC, HTTP)
#: What holds each model: servers in turn, and for every third model both.
HOLDERS: Final = (SERVERS[:1], SERVERS[1:], SERVERS)
_ADDRESSES: Final = dict(zip(SERVERS, (f"{LOOPBACK}:9", f"{LOOPBACK}:19"), strict=True))
HEAP: Final = 1 << 30  # bytes
_POLL: Final = 0.002  # seconds
_WITHIN: Final = 60.0  # seconds


class Proxy:
    """A running Envoy. `offer` gives it new routes, serialized, by kind of port."""

    def __init__(self, pid: int, probes: Mapping[str, Probe], teller: "Teller") -> None:
        self.pid = pid
        self._probes = probes
        self._teller = teller

    async def follow(self, routes: Resources, revision: str) -> None:
        """Offer routes, and wait until its worker goes by them. Raises Failed."""
        self._teller.offer(routes)
        deadline = time.monotonic() + _WITHIN
        for probe in self._probes.values():
            while await _asked(probe) != revision:
                if time.monotonic() > deadline:
                    raise Failed(f"Envoy does not follow within {_WITHIN} s")
                await asyncio.sleep(_POLL)


class Teller(Protocol):
    """A way to tell the proxy its routes."""

    def offer(self, routes: Resources) -> None: ...


async def _asked(probe: Probe) -> str:
    try:
        return await probe.ask("bench")
    except NoProxy:
        return ""


class _Streamed:
    """The lane's own way: discovery over gRPC."""

    def __init__(self, front: Front) -> None:
        self.discovery = Discovery()
        listeners = _serialized(resources.listeners(front))
        clusters = _serialized(_clusters(front))
        self.discovery.offer(LISTENER, lambda: listeners)
        self.discovery.offer(CLUSTER, lambda: clusters)

    def offer(self, routes: Resources) -> None:
        self.discovery.offer(ROUTES, lambda: routes)


class _Files:
    """Files in `folder`, one for each kind of port, replaced by renaming."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def offer(self, routes: Resources) -> None:
        for kind, serialized in routes.items():
            response = message("envoy.service.discovery.v3.DiscoveryResponse")
            response.type_url = TYPE + ROUTES
            response.resources.add(type_url=TYPE + ROUTES, value=serialized)
            path = self._folder / f"{kind}.pb"
            new = path.with_suffix(".new")
            new.write_bytes(response.SerializeToString())
            new.rename(path)


@asynccontextmanager
async def streamed(envoy: Path) -> AsyncIterator[Proxy]:
    """Run one that is told over gRPC."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        front = _front(folder)
        teller = _Streamed(front)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((teller.discovery.handlers(),))
        port = server.add_insecure_port(f"{LOOPBACK}:0")
        await server.start()
        try:
            command = lane.command(envoy, folder, f"{LOOPBACK}:{port}", HEAP)
            async with _running(command, folder, front, teller) as proxy:
                yield proxy
        finally:
            await server.stop(0)


@asynccontextmanager
async def by_files(envoy: Path) -> AsyncIterator[Proxy]:
    """Run one that watches files."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        front = _front(folder)
        watched = folder / "routes"
        watched.mkdir()
        teller = _Files(watched)
        teller.offer({kind: Routes(kind).serialized("none") for kind in KINDS})
        command = lane.command(envoy, folder, f"{LOOPBACK}:9", HEAP)  # for its options
        bootstrap = folder / "files.json"
        bootstrap.write_text(json.dumps(_static(front, watched)))
        path = command.index("--config-path") + 1
        command = (*command[:path], str(bootstrap), *command[path + 1 :])
        async with _running(command, folder, front, teller) as proxy:
            yield proxy


@asynccontextmanager
async def _running(
    command: tuple[str, ...], folder: Path, front: Front, teller: Teller
) -> AsyncIterator[Proxy]:
    os.mkfifo(front.journal)
    journal = os.open(front.journal, os.O_RDWR | os.O_NONBLOCK)  # a line for each probe
    probes = {kind: Probe(address) for kind, address in front.probes.items()}
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield Proxy(process.pid, probes, teller)
    finally:
        for probe in probes.values():
            probe.close()
        process.kill()
        await process.wait()
        os.close(journal)


def _front(folder: Path) -> Front:
    ports = pick(6)
    grpc_port, http_port, *others = (f"{LOOPBACK}:{port}" for port in ports)
    return Front(
        grpc_port,
        http_port,
        dict(zip(KINDS, others[:2], strict=True)),
        dict(zip(KINDS, others[2:], strict=True)),
        str(folder / "journal"),
        trace_ratio=0.0,
        router_workers=1,
        max_message=256 << 20,
        max_body=256 << 20,
        max_json=64 << 20,
        limits=Limits(),
    )


def _clusters(front: Front) -> Mapping[str, Any]:
    found = resources.router_clusters(front)
    for kind in KINDS:
        for servers in HOLDERS:
            addresses = [_ADDRESSES[server] for server in servers]
            cluster = resources.servers_cluster(kind, servers, addresses, front)
            found[cluster.name] = cluster
    return found


def _static(front: Front, watched: Path) -> dict[str, Any]:
    """Return a bootstrap with everything but the routes."""
    listeners = [_plain(one) for one in resources.listeners(front).values()]
    for listener in listeners:
        (chain,) = listener["filter_chains"]
        rds = chain["filters"][0]["typed_config"]["rds"]
        rds["config_source"] = {
            "resource_api_version": "V3",
            "path_config_source": {
                "path": str(watched / f"{rds['route_config_name']}.pb"),
                "watched_directory": {"path": str(watched)},
            },
        }
    clusters = [_plain(one) for one in _clusters(front).values()]
    node = {"id": lane.NODE, "cluster": lane.NODE}
    return {"node": node, "static_resources": {"listeners": listeners, "clusters": clusters}}


def _plain(resource: Any) -> dict[str, Any]:
    pool = resource.DESCRIPTOR.file.pool
    return json_format.MessageToDict(
        resource, preserving_proto_field_name=True, descriptor_pool=pool
    )


def _serialized(found: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: one.SerializeToString() for name, one in found.items()}
