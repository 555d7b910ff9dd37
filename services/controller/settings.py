"""The Controller's settings: environment variables that start with SHOAL_CONTROLLER_."""

import os
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

    id: str = Field(description="the name that it was started with as --id")
    address: Address = Field(description="host:port of its gRPC endpoint")
    memory_budget: dict[Resource, PositiveInt] = Field(
        default_factory=dict,
        description='bytes by resource ("ram", "gpu:0"), beyond what it takes without models',
    )
    soft_limit: Share | None = Field(
        default=None, description="share of the budget; None: the same as for all servers"
    )
    max_models: int = Field(
        default=0, ge=0, description="the most units at a time; 0: no such limit"
    )
    headroom_models: int = Field(
        default=0, ge=0, description="how many of max_models are kept free ahead of need"
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="labels that models may require"
    )
    host: str = Field(
        default="",
        description="servers of the same host share its cores; empty: taken from the address",
    )
    local: bool = Field(
        default=True,
        description="whether its processes run on this host, where they can be measured",
    )
    metrics_url: AnyHttpUrl | None = Field(
        default=None, description="its metrics endpoint, for a server that is not local"
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
    """The settings of one Controller. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="SHOAL_CONTROLLER_", extra="forbid", hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    port: int = 9102
    metrics_port: int = 9112
    registry: Address = Field(default="127.0.0.1:9101", description="host:port of the Registry")
    holder: str = Field(
        default="controller", description="the stable name under which it asks for the lease"
    )
    servers: list[ServerSettings] = Field(default_factory=list)
    triton_admin_key: SecretStr = Field(
        default=SecretStr(""), description="the key of Triton's restricted protocols"
    )
    selfcheck_model: str = Field(
        default="",
        description="an identity model in every server's repository, checked before the "
        "server is used; empty: no check",
    )
    trusted_proxies: list[str] = Field(default_factory=list)
    events_webhook: Secret[AnyHttpUrl] | None = Field(
        default=None,
        description="the URL that every event is posted to, as a CloudEvent; None: nowhere",
    )

    health_interval: float = Field(
        default=0.5, gt=0, description="between two looks at a server's index"
    )
    measure_interval: float = Field(
        default=1.0, gt=0, description="between two measurements of a server"
    )
    load_timeout: float = Field(default=300.0, gt=0, description="a longer load counts as hung")
    unload_timeout: float = Field(default=60.0, gt=0, description="a longer unload counts as hung")
    probe_timeout: float = Field(
        default=30.0, gt=0, description="how long a version may take to answer its probe"
    )
    max_wait: float = Field(
        default=300.0, gt=0, description="how long callers without a deadline wait"
    )
    lease_ttl: float = Field(
        default=10.0, gt=1, description="how long the lease lasts, after which another one may act"
    )
    server_patience: float = Field(
        default=_DEFAULT.server_patience_seconds,
        ge=0,
        description="how long requests wait for a server while none is healthy",
    )
    router_lease: float = Field(
        default=_DEFAULT.router_seconds,
        gt=0,
        description="a Router that is not heard from for so long is dropped",
    )

    policy: Literal["lru", "gdsf"] = Field(
        default="lru",
        description="what is evicted first: the least recently used, or what costs least to lose, "
        "by its size, reload time and use",
    )
    half_life: float = Field(
        default=_DEFAULT.half_life_seconds,
        gt=0,
        description="the time after which a use counts half",
    )
    soft_limit: Share = Field(
        default=0.9,
        description="share of a budget beyond which idle models are evicted ahead of need; "
        "1: models are evicted only when their room is needed",
    )
    headroom_idle: float = Field(
        default=_DEFAULT.headroom_idle_seconds,
        ge=0,
        description="a model that was used in this time is not evicted ahead of need",
    )
    idle_ttl: float = Field(
        default=_DEFAULT.idle_ttl_seconds,
        ge=0,
        description="a model that is not used for so long is evicted; 0: never for that reason",
    )
    leak_share: float = Field(
        default=_DEFAULT.leak_share,
        gt=0,
        description="share of a budget that a server may hold beyond what its models take before "
        "it is drained and restarted",
    )

    loads_per_server: int = Field(
        default=_DEFAULT.loads_per_server,
        ge=1,
        description="the most loads at a time on one server",
    )
    loads_per_host: int | None = Field(
        default=None,
        ge=1,
        description="the most loads at a time on one host; None: one for each core of this host, "
        "4 at most",
    )
    load_backoff: float = Field(
        default=_DEFAULT.backoff_seconds,
        gt=0,
        description="the time until a failed load is tried again; doubles with each failure",
    )

    min_copies: int = Field(
        default=0, ge=0, description="how many replicas of every default version are kept"
    )
    preload: list[str] = Field(
        default_factory=list,
        description='models ("resnet", "resnet:2") that are loaded when the Controller starts',
    )
    pinned: list[str] = Field(
        default_factory=list, description="models that are loaded and never evicted"
    )
    max_copies: int = Field(
        default=_DEFAULT.max_copies, ge=1, description="the most replicas of one version"
    )
    copy_in_flight: float = Field(
        default=_DEFAULT.copy_in_flight,
        gt=0,
        description="requests in flight on each replica that call for another copy",
    )
    copy_queue: float = Field(
        default=_DEFAULT.copy_queue_seconds,
        gt=0,
        description="mean time in the server's own queue that calls for another copy",
    )
    copy_up: float = Field(
        default=_DEFAULT.copy_up_seconds,
        ge=0,
        description="how long a version must be busy before it gets another copy",
    )
    copy_down: float = Field(
        default=_DEFAULT.copy_down_seconds,
        ge=0,
        description="a copy leaves once the others could have done without it for so long",
    )

    predict: bool = Field(
        default=_DEFAULT.predict,
        description="whether models are loaded into spare room ahead of their expected use",
    )
    predict_ahead: float = Field(
        default=_DEFAULT.predict_seconds,
        gt=0,
        description="how long ahead of its use a model is loaded",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [server.id for server in self.servers]
        if twice := sorted({id_ for id_ in ids if ids.count(id_) > 1}):
            raise ValueError(f"several servers have the id {', '.join(twice)}")
        return self


def defaults(settings: Settings) -> Defaults:
    """Return the defaults of models that ask for nothing themselves."""
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
    """Return the name of the server's host, whose cores and memory its servers share."""
    return one.host or (THIS_HOST if one.local else one.address.rpartition(":")[0])


def metrics_url(settings: Settings, one: ServerSettings) -> str:
    """Return where to read what the server takes.

    Empty where that is not known, or where the numbers would be those of several servers.
    """
    beside = [other for other in settings.servers if host(other) == host(one)]
    return str(one.metrics_url) if one.metrics_url is not None and len(beside) == 1 else ""
