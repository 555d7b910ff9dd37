"""The Controller's settings, from environment variables that begin with SHOAL_CONTROLLER_."""

import os
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AnyHttpUrl,
    BaseModel,
    Field,
    Secret,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.units import Bytes, Seconds
from services.controller.core import memory
from services.controller.core.entities import Server
from services.controller.core.limits import Limits
from services.controller.registry.catalogue import Defaults

Address = Annotated[str, StringConstraints(pattern=r"^.+:\d+$")]
Resource = Annotated[str, StringConstraints(pattern=r"^(ram|gpu:\d+)$")]
Share = Annotated[float, Field(gt=0, le=1)]
PositiveBytes = Annotated[Bytes, Field(gt=0)]

THIS_HOST: Final = "localhost"

_DEFAULT: Final = Limits()


class ServerSettings(BaseModel, extra="forbid", use_attribute_docstrings=True):
    """One Triton, as an object of `SHOAL_CONTROLLER_SERVERS`."""

    id: str
    """The name the server was started with (`--id`)."""
    address: Address
    """`host:port` of the server's gRPC endpoint."""
    http_address: Address | None = None
    """`host:port` of the server's HTTP endpoint, if Routers' lanes may use it. Its administrative
    protocols must be restricted as those of gRPC are."""
    memory_budget: dict[Resource, PositiveBytes] = Field(default_factory=dict)
    """Bytes that models may take of each resource (`ram`, `gpu:0`, …), beyond what the empty server
    takes. A resource that is not named has no budget."""
    soft_limit: Share | None = None
    """Share of the budget beyond which idle models are evicted ahead of need. By default the
    `SHOAL_CONTROLLER_SOFT_LIMIT` of all servers."""
    max_models: int = Field(default=0, ge=0)
    """The most units the server may hold; 0 for no such limit. An ensemble does not count, its
    parts do."""
    headroom_models: int = Field(default=0, ge=0)
    """How many of `max_models` are kept free ahead of need."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that models may require (`shoal residency --require`). Copies of a model spread over
    the values of `zone`."""
    host: str = ""
    """Servers with the same value share a machine's cores. By default it follows from `local` and
    the address."""
    local: bool = True
    """Whether the server's processes run on the Controller's host, so that their memory can be
    measured one by one."""
    auto_complete: bool | None = None
    """Whether the server runs with auto-completion, and so can complete configs that leave out what
    only a server knows. By default that is found out."""
    metrics_url: AnyHttpUrl | None = None
    """The server's Prometheus endpoint, from which its memory is read if it is not local."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_models and self.headroom_models >= self.max_models:
            raise ValueError(
                f"server {self.id}: headroom_models ({self.headroom_models}) leaves none of its "
                f"max_models ({self.max_models}) to be used"
            )
        return self


class Settings(BaseSettings):
    """The Controller decides which models are loaded where."""

    model_config = SettingsConfigDict(
        env_prefix="SHOAL_CONTROLLER_",
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback, administrative calls are accepted only from trusted
    proxies."""
    port: int = 9102
    """Port of the gRPC API."""
    metrics_port: int = 9112
    """Port of the Prometheus metrics."""
    registry: Address = "127.0.0.1:9101"
    """`host:port` of the Registry."""
    holder: str = "controller"
    """The name under which this Controller asks for the lease to act. It must be unique among the
    Controllers of a fleet, and stay the same across restarts."""
    servers: list[ServerSettings] = Field(default_factory=list)
    """The Tritons of the fleet, as a JSON list of [server objects](#each-server)."""
    triton_admin_key: SecretStr = SecretStr("")
    """The value that every Triton was given for its restricted protocols."""
    selfcheck_model: str = ""
    """The name of an identity model in every server's repository. Its answer is compared before an
    empty server is used. Empty for no check."""
    trusted_proxies: list[str] = Field(default_factory=list)
    """Addresses or networks whose `x-shoal-subject`, `x-shoal-tenant` and `x-shoal-roles` headers
    are believed."""
    events_webhook: Secret[AnyHttpUrl] | None = None
    """A URL to which every event is posted as a CloudEvent. It may contain credentials."""

    health_interval: Seconds = Field(default=0.5, gt=0)
    """Time between two looks at each server."""
    measure_interval: Seconds = Field(default=1.0, gt=0)
    """Time between two measurements of each server's memory."""
    load_timeout: Seconds = Field(default=300.0, gt=0)
    """Time after which a load counts as hung."""
    unload_timeout: Seconds = Field(default=60.0, gt=0)
    """Time after which an unload counts as hung; its server is then drained, to be restarted."""
    probe_timeout: Seconds = Field(default=30.0, gt=0)
    """How long a freshly loaded version may take to answer its probe."""
    max_wait: Seconds = Field(default=300.0, gt=0)
    """The longest a cold request waits for its model, whatever its own deadline."""
    lease_ttl: Seconds = Field(default=10.0, gt=1)
    """How long the lease to act lasts without renewal. The same for all Controllers of a fleet."""
    server_patience: Seconds = Field(default=_DEFAULT.server_patience_seconds, ge=0)
    """How long cold requests wait for a server while none is healthy."""
    router_lease: Seconds = Field(default=_DEFAULT.router_seconds, gt=0)
    """A Router that has not been heard from for this long no longer holds up an unload."""

    policy: Literal["lru", "gdsf"] = "lru"
    """What is evicted first: `lru`, the least recently used, or `gdsf`, what costs least to lose by
    size, load time and use."""
    half_life: Seconds = Field(default=_DEFAULT.half_life_seconds, gt=0)
    """Time after which a use counts half. Uses are remembered of models that were evicted, and
    across restarts; they matter with the policy `gdsf`."""
    soft_limit: Share = 0.9
    """Share of a budget beyond which idle models are evicted ahead of need; 1 to evict only when
    the room is needed."""
    headroom_idle: Seconds = Field(default=_DEFAULT.headroom_idle_seconds, ge=0)
    """A model used within this time is not evicted ahead of need."""
    idle_ttl: Seconds = Field(default=_DEFAULT.idle_ttl_seconds, ge=0)
    """A model that has not been used for this long is evicted; 0 for never on that ground."""
    leak_share: float = Field(default=_DEFAULT.leak_share, gt=0)
    """Share of its budget that a server may hold beyond what its models take, before it is drained
    and restarted."""

    loads_per_server: int = Field(default=_DEFAULT.loads_per_server, ge=1)
    """How many loads may run at the same time on one server."""
    loads_per_host: int | None = Field(default=None, ge=1)
    """How many loads may run at the same time on one host. By default as many as the Controller's
    host has cores, but at most 4."""
    load_backoff: Seconds = Field(default=_DEFAULT.backoff_seconds, gt=0)
    """Time until a failed load is tried again; it doubles with each further failure."""

    min_copies: int = Field(default=0, ge=0)
    """Replicas of each model's default version that are always kept, unless the model sets its own
    minimum."""
    preload: list[str] = Field(default_factory=list)
    """Models (`"resnet"`, `"resnet:2"`) to load when the Controller starts."""
    pinned: list[str] = Field(default_factory=list)
    """Models that are loaded and never evicted."""
    max_copies: int = Field(default=_DEFAULT.max_copies, ge=1)
    """The most replicas of one version, unless the model sets its own maximum."""
    copy_in_flight: float = Field(default=_DEFAULT.copy_in_flight, gt=0)
    """Requests in flight per replica above which another copy is wanted."""
    copy_queue: Seconds = Field(default=_DEFAULT.copy_queue_seconds, gt=0)
    """Mean time in the server's own queue above which another copy is wanted."""
    copy_up: Seconds = Field(default=_DEFAULT.copy_up_seconds, ge=0)
    """How long another copy must be wanted before it is loaded."""
    copy_down: Seconds = Field(default=_DEFAULT.copy_down_seconds, ge=0)
    """A copy is evicted when the others could have done without it for this long."""

    predict: bool = _DEFAULT.predict
    """Whether models are loaded into spare room ahead of when they are expected to be used."""
    predict_ahead: Seconds = Field(default=_DEFAULT.predict_seconds, gt=0)
    """How far ahead models are loaded on expectation."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [server.id for server in self.servers]
        if twice := sorted({id_ for id_ in ids if ids.count(id_) > 1}):
            raise ValueError(f"several servers have the id {', '.join(twice)}")
        return self


def defaults(settings: Settings) -> Defaults:
    return Defaults(settings.min_copies, frozenset(settings.preload), frozenset(settings.pinned))


def limits(settings: Settings) -> Limits:
    return Limits(
        leak_share=settings.leak_share,
        policy=settings.policy,
        half_life_seconds=settings.half_life,
        idle_ttl_seconds=settings.idle_ttl,
        headroom_idle_seconds=settings.headroom_idle,
        loads_per_server=settings.loads_per_server,
        loads_per_host=settings.loads_per_host or min(_DEFAULT.loads_per_host, os.cpu_count() or 1),
        backoff_seconds=settings.load_backoff,
        server_patience_seconds=settings.server_patience,
        router_seconds=settings.router_lease,
        max_copies=settings.max_copies,
        copy_in_flight=settings.copy_in_flight,
        copy_queue_seconds=settings.copy_queue,
        copy_up_seconds=settings.copy_up,
        copy_down_seconds=settings.copy_down,
        predict=settings.predict,
        predict_seconds=settings.predict_ahead,
    )


def server(settings: Settings, one: ServerSettings) -> Server:
    share = settings.soft_limit if one.soft_limit is None else one.soft_limit
    return Server(
        one.id,
        one.address,
        budget=one.memory_budget,
        soft=memory.scaled(one.memory_budget, share) if share < 1 else {},
        max_models=one.max_models,
        headroom_models=one.headroom_models,
        host=host(one),
        labels=one.labels,
        auto_complete=one.auto_complete,
    )


def host(one: ServerSettings) -> str:
    """Return the name of the machine: servers with the same one share cores and memory."""
    return one.host or (THIS_HOST if one.local else one.address.rpartition(":")[0])


def metrics_url(settings: Settings, one: ServerSettings) -> str:
    """Return where to read the server's memory; "" where that is not known, or would be the sum of
    several servers."""
    beside = [other for other in settings.servers if host(other) == host(one)]
    return str(one.metrics_url) if one.metrics_url is not None and len(beside) == 1 else ""
