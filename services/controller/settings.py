"""The Controller's settings: environment variables that start with SHOAL_CONTROLLER_."""

import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AnyHttpUrl,
    BaseModel,
    Field,
    PositiveInt,
    Secret,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.controller.core import memory
from services.controller.core.entities import Server
from services.controller.core.limits import Limits
from services.controller.registry.catalogue import Defaults

Address = Annotated[str, StringConstraints(pattern=r"^.+:\d+$")]
Resource = Annotated[str, StringConstraints(pattern=r"^(ram|gpu:\d+)$")]
Share = Annotated[float, Field(gt=0, le=1)]

THIS_HOST: Final = "localhost"

_DEFAULT: Final = Limits()


class ServerSettings(BaseModel, extra="forbid"):
    """One Triton."""

    id: str = Field(description="what it was started with as --id")
    address: Address = Field(description="host:port of its gRPC endpoint")
    memory_budget: dict[Resource, PositiveInt] = Field(
        default_factory=dict,
        description='bytes by resource ("ram", "gpu:0"), over the server\'s own baseline',
    )
    soft_limit: Share | None = Field(
        default=None, description="share of the budget; None: as of all servers"
    )
    max_models: int = Field(default=0, ge=0, description="units at most; 0: no such limit")
    headroom_models: int = Field(
        default=0, ge=0, description="of max_models, how many are kept free ahead of need"
    )
    labels: dict[str, str] = Field(default_factory=dict, description="that models may require")
    host: str = Field(
        default="", description="servers with the same share its cores; empty: by the address"
    )
    local: bool = Field(
        default=True, description="its processes run on this host, so that they can be measured"
    )
    metrics_url: AnyHttpUrl | None = Field(
        default=None, description="of its metrics endpoint, for a server that is not local"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_models and self.headroom_models >= self.max_models:
            raise ValueError(
                f"server {self.id}: headroom_models ({self.headroom_models}) leaves none of its "
                f"max_models ({self.max_models}) to be used"
            )
        return self


class Settings(BaseSettings):
    """Times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="SHOAL_CONTROLLER_", extra="forbid", hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    port: int = 9102
    metrics_port: int = 9112
    registry: Address = Field(default="127.0.0.1:9101", description="host:port")
    holder: str = Field(
        default="controller", description="the stable name under which it asks for the lease"
    )
    servers: list[ServerSettings] = Field(default_factory=list)
    triton_admin_key: SecretStr = Field(
        default=SecretStr(""), description="for Triton's restricted protocols"
    )
    selfcheck_model: str = Field(
        default="",
        description="an identity model in every server's repository, compared at attachment; "
        "empty: no check",
    )
    trusted_proxies: list[str] = Field(default_factory=list)
    staging_dir: Path | None = None
    events_webhook: Secret[AnyHttpUrl] | None = Field(
        default=None, description="where every event is posted to, as a CloudEvent; None: nowhere"
    )

    health_interval: float = Field(default=0.5, gt=0)
    measure_interval: float = Field(default=1.0, gt=0)
    load_timeout: float = Field(default=300.0, gt=0, description="a longer load counts as hung")
    unload_timeout: float = Field(default=60.0, gt=0, description="a longer unload counts as hung")
    probe_timeout: float = Field(
        default=30.0, gt=0, description="for the first answer of a version that has a probe"
    )
    max_wait: float = Field(default=300.0, gt=0, description="for callers without a deadline")
    lease_ttl: float = Field(default=10.0, gt=1)
    server_patience: float = Field(
        default=_DEFAULT.server_patience_seconds,
        ge=0,
        description="how long requests wait for a server when none is healthy",
    )
    router_lease: float = Field(
        default=_DEFAULT.router_seconds,
        gt=0,
        description="a Router that was not heard from for so long is dropped",
    )

    policy: Literal["lru", "gdsf"] = Field(
        default="lru",
        description="what is evicted first: the least recently used, or what costs least to lose "
        "by size, reload time and use",
    )
    half_life: float = Field(
        default=_DEFAULT.half_life_seconds, gt=0, description="after which a use counts half"
    )
    soft_limit: Share = Field(
        default=0.9,
        description="share of a budget beyond which what is idle is evicted ahead of need; "
        "1: only when the room is needed",
    )
    headroom_idle: float = Field(
        default=_DEFAULT.headroom_idle_seconds,
        ge=0,
        description="what was used within them is not evicted ahead of need",
    )
    idle_ttl: float = Field(
        default=_DEFAULT.idle_ttl_seconds,
        ge=0,
        description="a model that was not used for so long is evicted; 0: never for that reason",
    )
    leak_share: float = Field(
        default=_DEFAULT.leak_share,
        gt=0,
        description="share of a budget that a server may hold beyond what its models take, before "
        "it is drained and restarted",
    )

    loads_per_server: int = Field(
        default=_DEFAULT.loads_per_server, ge=1, description="at the same time"
    )
    loads_per_host: int | None = Field(
        default=None,
        ge=1,
        description="at the same time; None: as many as this host has cores, 4 at most",
    )
    load_backoff: float = Field(
        default=_DEFAULT.backoff_seconds,
        gt=0,
        description="until a failed load is tried again; doubles with each failure",
    )

    min_copies: int = Field(
        default=0, ge=0, description="replicas of every default version that are kept"
    )
    preload: list[str] = Field(
        default_factory=list,
        description='models ("resnet", "resnet:2") that are loaded when the Controller starts',
    )
    pinned: list[str] = Field(
        default_factory=list, description="models that are loaded and never evicted"
    )
    max_copies: int = Field(
        default=_DEFAULT.max_copies, ge=1, description="replicas of one version at most"
    )
    copy_in_flight: float = Field(
        default=_DEFAULT.copy_in_flight,
        gt=0,
        description="requests in flight per replica that call for another copy",
    )
    copy_queue: float = Field(
        default=_DEFAULT.copy_queue_seconds,
        gt=0,
        description="mean time in the server's own queue that calls for another copy",
    )
    copy_up: float = Field(
        default=_DEFAULT.copy_up_seconds, ge=0, description="for so long, before there is another"
    )
    copy_down: float = Field(
        default=_DEFAULT.copy_down_seconds,
        ge=0,
        description="a copy leaves when the others could have done without it for so long",
    )

    predict: bool = Field(
        default=_DEFAULT.predict,
        description="whether models are loaded ahead of when they are expected, into spare room",
    )
    predict_ahead: float = Field(default=_DEFAULT.predict_seconds, gt=0)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [server.id for server in self.servers]
        if twice := sorted({id_ for id_ in ids if ids.count(id_) > 1}):
            raise ValueError(f"several servers have the id {', '.join(twice)}")
        return self


def defaults(settings: Settings) -> Defaults:
    """Return what holds for models that ask for nothing themselves."""
    return Defaults(settings.min_copies, frozenset(settings.preload), frozenset(settings.pinned))


def limits(settings: Settings) -> Limits:
    """Return the numbers that the engine decides by."""
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
    """Return a server as the engine takes it."""
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
    )


def host(one: ServerSettings) -> str:
    """Which servers share cores and memory."""
    return one.host or (THIS_HOST if one.local else one.address.rpartition(":")[0])


def metrics_url(settings: Settings, one: ServerSettings) -> str:
    """Where to read what the server takes; empty where that is not told, or would be the sum of
    several servers."""
    beside = [other for other in settings.servers if host(other) == host(one)]
    return str(one.metrics_url) if one.metrics_url is not None and len(beside) == 1 else ""
