"""The Router's settings, from environment variables that begin with SHOAL_ROUTER_."""

import resource
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.rpc import Limits
from services.common.units import Bytes, Seconds
from services.router.core.admission.gate import QUEUE_BYTES, QUEUE_REQUESTS, QUEUE_SECONDS, Bounds
from services.router.core.admission.priority import Priority
from services.router.core.admission.tenants import ANYBODY, TenantLimit
from services.router.core.rest.browsers import BrowserPolicy
from services.router.core.routing.lane import LaneRules

MIB = 1 << 20
LOOPBACK = "127.0.0.1"
MAX_MESSAGE = 2**31 - 1  # bytes; what tritonclient allows itself
# A request beyond the limit by no more than this is refused by the Router, a larger one by gRPC.
EXCESS = 64 * MIB
MEMORY_PART = 8  # a request under way takes four times its bytes
LARGEST_HELD = 4  # messages
OWN_FILES = 512  # descriptors that no client may take
# Long enough to begin with the last of 20,000 calls at once, even on a busy machine.
PENDING_SECONDS = 300.0

_ADDRESS = r"[^,]+:\d+"
_ORIGIN = r"^(\*|null|[a-z][a-z0-9+.-]*://[^/\s]+)$"


Listening = Annotated[str, StringConstraints(pattern=rf"^{_ADDRESS}$")]


class TenantSettings(BaseModel):
    """The limits of one tenant, as an object of `SHOAL_ROUTER_TENANT_LIMITS`. What a tenant leaves
    out is taken from `*`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    rate: float | None = Field(default=None, gt=0)
    """Requests a second, on average. By default no limit."""
    burst: float | None = Field(default=None, ge=1)
    """Requests at once after a pause. By default the requests of one second."""
    in_flight: int | None = Field(default=None, ge=1)
    """Requests at the same time, waiting or sent. By default no limit."""
    cold: int | None = Field(default=None, ge=1)
    """Requests at the same time that wait for a model to become resident. By default 1000."""
    priority: Literal["high", "normal", "low"] | None = None
    """The most urgent class the tenant may use. By default `high`."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.burst is not None and self.rate is None:
            raise ValueError("a burst needs a rate beside it")
        return self

    def over(self, limit: TenantLimit) -> TenantLimit:
        """Return these limits, completed from `limit`."""
        return TenantLimit(
            rate=limit.rate if self.rate is None else self.rate,
            burst=limit.burst if self.rate is None else self.burst,
            in_flight=limit.in_flight if self.in_flight is None else self.in_flight,
            cold=limit.cold if self.cold is None else self.cold,
            priority=limit.priority if self.priority is None else Priority[self.priority.upper()],
        )


class LaneSettings(BaseModel):
    """The [lane](lane.md), as the object in `SHOAL_ROUTER_LANE`. Addresses are `host:port`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    discovery: Listening
    """Address on which proxies are told their configuration (xDS v3, aggregated)."""
    grpc: Listening
    """Address on which the proxy listens for gRPC."""
    http: Listening
    """Address on which the proxy listens for HTTP."""
    grpc_probe: Listening
    """Address on which the proxy tells which routes it has for gRPC."""
    http_probe: Listening
    """Address on which the proxy tells which routes it has for HTTP."""
    journal: Path
    """Pipe in which the proxy notes the requests that it sends to servers. It is made if it is not
    there."""
    any_release: bool = False
    """Send gRPC requests to servers before release 25.06 as well, which a client that goes away in
    the middle of one can end."""


class Settings(BaseSettings):
    """The Router answers clients: it picks a version and a replica for each request."""

    model_config = SettingsConfigDict(
        env_prefix="SHOAL_ROUTER_", extra="forbid", use_attribute_docstrings=True
    )

    host: str = LOOPBACK
    """Address to listen on. Beyond loopback, administrative calls are accepted only from trusted
    proxies."""
    server_name: str = "triton"
    """The name in ServerMetadata. Clients made for Triton may look for Triton's."""
    grpc_port: int = 8001
    """Port of Triton's gRPC protocol and of Shoal's own API."""
    http_port: int = 8000
    """Port of HTTP: inference, health and the Prometheus metrics."""
    controller: Annotated[str, StringConstraints(pattern=rf"^{_ADDRESS}(,{_ADDRESS})*$")] = (
        "127.0.0.1:9102"
    )
    """`host:port` of every Controller, separated by commas. The one that acts is followed."""
    state_dir: Path | None = None
    """Folder that keeps the last placements, for a start while no Controller answers. By default
    they are not kept."""
    # Taking in one of the largest, nothing else is answered: half a second by default, 7 s at most.
    max_message_bytes: Bytes = Field(default=256 * MIB, gt=0, le=MAX_MESSAGE)
    """The largest request, also after decompression."""
    max_held_bytes: Bytes | None = Field(default=None, ge=1, le=2**63 - 1)
    """Bytes of all requests under way, divided among the workers. By default an eighth of the
    memory, and at least four of the largest requests."""
    max_json_bytes: Bytes = Field(default=64 * MIB, gt=0, le=MAX_MESSAGE)
    """The most JSON in one HTTP request."""
    json_processes: int = Field(default=2, ge=1, le=64)
    """The most processes that convert large JSON, in each worker."""
    cors_origins: list[Annotated[str, StringConstraints(pattern=_ORIGIN)]] = Field(
        default_factory=list
    )
    """Origins whose web pages may call the HTTP port, as in `["https://app.example"]`; `*` stands
    for every page. By default none."""
    http_hosts: list[Annotated[str, StringConstraints(to_lower=True)]] = Field(default_factory=list)
    """Further names under which callers on loopback reach the HTTP port. `localhost`, addresses,
    this host's own name and names without a dot need not be listed."""
    trusted_proxies: list[str] = Field(default_factory=list)
    """Addresses or networks whose `x-shoal-subject`, `x-shoal-tenant` and `x-shoal-roles` headers
    are believed."""
    controller_patience: Seconds | None = Field(default=None, ge=0)
    """How long a cold request waits while no Controller acts. By default until its deadline, or
    30 s if it has none."""
    hedge_after: Seconds | None = Field(default=None, gt=0)
    """Time without an answer after which a second replica is asked as well. By default never."""
    cancellation: Literal["auto", "always", "never"] = "auto"
    """Whether a server is told when nobody waits for a request any more: `never`, `always`, or
    `auto`, which means if its release is 25.06 or newer."""
    batch_scheduling: bool = False
    """Run under `SCHED_BATCH`: more requests a second, but later answers while models load on the
    same cores."""
    stop_grace: Seconds = Field(default=5.0, ge=0)
    """How long a stopping Router finishes the requests it has begun."""
    drain: Seconds = Field(default=2.0, ge=0)
    """Time for which a stopping Router says that it is not ready, and still answers, before it
    refuses requests. Longer than the interval of a balancer's health checks."""
    # Of each process. A Triton takes no more header bytes either.
    max_header_bytes: Bytes = Field(default=8 * 1024, ge=1024, le=MAX_MESSAGE)
    """The most metadata or headers in one call."""
    max_streams: int = Field(default=10_000, ge=1, le=MAX_MESSAGE)
    """Calls at the same time on one connection."""
    max_connections: int | None = Field(default=None, ge=1, le=MAX_MESSAGE)
    """Connections at the same time, gRPC and HTTP each. By default as many as the limit on open
    files allows, less 512."""
    # By default, all clients of a Router that comes back may call at once.
    max_pending: int = Field(default=20_000, ge=1, le=MAX_MESSAGE)
    """gRPC calls, over all connections, that the Router has not yet begun to handle."""
    connection_age: Seconds | None = Field(default=None, gt=0)
    """Age at which a gRPC client is told to reconnect. By default never."""
    connection_grace: Seconds | None = Field(default=None, gt=0)
    """Time after `connection_age` at which the calls left on the connection are ended. By default
    never."""
    connection_idle: Seconds | None = Field(default=3600.0, gt=0)
    """Time without a call after which a gRPC client is told to reconnect."""
    shared_memory: bool = False
    """Whether callers on this host may send tensors in shared memory."""
    lane: LaneSettings | None = None
    """Where the proxy in front of the Router listens, as a JSON object: [the lane](#the-lane). The
    Router then listens behind it, on loopback. By default there is no lane."""
    tenant_limits: dict[str, TenantSettings] = Field(default_factory=dict)
    """Limits by tenant, as a JSON object of [tenant objects](#each-tenant); `*` stands for every
    tenant that is not named."""
    in_flight_limits: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """How many requests one replica is sent at a time, by model, as a JSON object; `*` stands for
    every model that is not named. By default the Router finds out by measuring."""
    queue_requests: int = Field(default=QUEUE_REQUESTS, ge=1)
    """Requests that may wait for one version."""
    queue_bytes: Bytes = Field(default=QUEUE_BYTES, ge=1)
    """Bytes of all requests that wait."""
    queue_seconds: Seconds = Field(default=QUEUE_SECONDS, gt=0)
    """How long a request without a deadline may wait."""
    workers: int = Field(default=1, ge=1, le=64)
    """Router processes that share the ports."""
    worker: int | None = Field(default=None, ge=0)
    """Set by the parent of several workers for each of them; not for operators."""
    worker_sockets: Path = Path()
    """Set by the parent of several workers for each of them; not for operators."""

    @model_validator(mode="after")
    def _one_writes(self) -> Self:
        if self.shared_memory and self.hedge_after is not None:
            raise ValueError(
                "SHOAL_ROUTER_HEDGE_AFTER does not go with SHOAL_ROUTER_SHARED_MEMORY: two servers "
                "would write to the same memory, one of them after the answer"
            )
        return self

    @property
    def max_received_bytes(self) -> int:
        """The limit that gRPC is given: above the Router's own, so that callers see its error."""
        return min(MAX_MESSAGE, self.max_message_bytes + EXCESS)

    def held_bytes(self, memory: int) -> int:
        """Return the most bytes of requests under way in this process, on a machine with `memory`
        bytes."""
        limit = self.max_held_bytes
        if limit is None:
            limit = max(memory // MEMORY_PART, LARGEST_HELD * self.max_message_bytes)
        return max(1, limit // self.workers)

    @property
    def limits(self) -> Limits:
        """What clients may take of a gRPC server. The number of connections leaves open files for
        those that the Router makes to servers and Controllers."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = max(files - OWN_FILES, files // 2) if files != resource.RLIM_INFINITY else None
        return Limits(
            header_bytes=self.max_header_bytes,
            streams=self.max_streams,
            connections=self.max_connections or room,
            pending=self.max_pending,
            pending_time=PENDING_SECONDS,
            age=self.connection_age,
            grace=self.connection_grace,
            idle=self.connection_idle,
        )

    @property
    def own_host(self) -> str:
        """Where this process listens: behind the lane's proxy, on loopback."""
        return self.host if self.lane is None else LOOPBACK

    @property
    def lane_rules(self) -> LaneRules:
        """What the lane may not do by itself."""
        closed = ""
        if self.tenant_limits:
            closed = "tenants have limits, which the Router keeps"
        elif self.hedge_after is not None:
            closed = "the Router asks a second replica when one takes long"
        any_release = self.lane is not None and self.lane.any_release
        return LaneRules(closed, frozenset(self.in_flight_limits), any_release)

    @property
    def browsers(self) -> BrowserPolicy:
        names = (self.host, socket.gethostname())
        return BrowserPolicy(
            frozenset(self.cors_origins), frozenset({*self.http_hosts, *map(str.lower, names)})
        )

    @property
    def controllers(self) -> list[str]:
        return list(dict.fromkeys(self.controller.split(",")))

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.queue_requests, self.queue_bytes, self.queue_seconds)


def tenant_limits(settings: Mapping[str, TenantSettings]) -> dict[str, TenantLimit]:
    anybody = settings.get(ANYBODY, TenantSettings()).over(TenantLimit())
    return {name: tenant.over(anybody) for name, tenant in settings.items()}
