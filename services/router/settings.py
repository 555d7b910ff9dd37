"""The Router's settings: environment variables that start with SHOAL_ROUTER_."""

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.rpc import Limits
from services.router.core.admission.gate import QUEUE_BYTES, QUEUE_REQUESTS, QUEUE_SECONDS, Bounds
from services.router.core.admission.priority import Priority
from services.router.core.admission.tenants import ANYBODY, TenantLimit

MIB = 1 << 20
MAX_MESSAGE = 2**31 - 1  # bytes; what tritonclient allows itself
# One that is larger by no more is told of the limit by the Router, others by gRPC.
EXCESS = 64 * MIB
MEMORY_PART = 8  # a request under way takes four times its bytes
LARGEST_HELD = 4  # messages
ALONE_PATIENCE = 5.0  # seconds
OWN_FILES = 512  # descriptors that no client may take
# Until then the last of 20,000 calls at once are begun with, also on a busy machine.
PENDING_SECONDS = 300.0
TAKE_OVER_PATIENCE = 30.0  # seconds; a lease runs out first, in 10 s unless it is set otherwise

_ADDRESS = r"[^,]+:\d+"


class TenantSettings(BaseModel):
    """As `TenantLimit`; what one tenant leaves out is as for all."""

    model_config = ConfigDict(extra="forbid")

    rate: float | None = Field(default=None, gt=0)
    burst: float | None = Field(default=None, ge=1)
    in_flight: int | None = Field(default=None, ge=1)
    cold: int | None = Field(default=None, ge=1)
    priority: Literal["high", "normal", "low"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.burst is not None and self.rate is None:
            raise ValueError("a burst needs a rate beside it")
        return self

    def over(self, limit: TenantLimit) -> TenantLimit:
        """With `limit` for what is left out."""
        return TenantLimit(
            rate=limit.rate if self.rate is None else self.rate,
            burst=limit.burst if self.rate is None else self.burst,
            in_flight=limit.in_flight if self.in_flight is None else self.in_flight,
            cold=limit.cold if self.cold is None else self.cold,
            priority=limit.priority if self.priority is None else Priority[self.priority.upper()],
        )


class Settings(BaseSettings):
    """`controller`: host:port of each Controller, separated by commas; the one that acts is
    followed. `controller_patience`: of a cold request, while none acts; by default longer than a
    take-over lasts where there are several. `state_dir`: where the last table is kept, empty for
    nowhere. `max_message_bytes`: of one request; `max_held_bytes`: of all that are under way,
    divided among the workers. `workers`: processes on the same ports; `worker` and
    `worker_sockets` are what their parent tells each of them. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="SHOAL_ROUTER_", extra="forbid")

    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    controller: Annotated[str, StringConstraints(pattern=rf"^{_ADDRESS}(,{_ADDRESS})*$")] = (
        "127.0.0.1:9102"
    )
    state_dir: Path | None = None
    # Taking in one of the largest, nothing else is answered: half a second by default, 7 s at most.
    max_message_bytes: int = Field(default=256 * MIB, gt=0, le=MAX_MESSAGE)
    max_held_bytes: int | None = Field(
        default=None, ge=1, le=2**63 - 1, description="of all requests under way"
    )
    max_json_bytes: int = Field(
        default=64 * MIB,
        gt=0,
        le=MAX_MESSAGE,
        description="of one request",
    )
    json_processes: int = Field(
        default=2, ge=1, le=64, description="that convert large JSON, at most, in each worker"
    )
    trusted_proxies: list[str] = Field(default_factory=list)
    controller_patience: float | None = Field(default=None, ge=0)
    hedge_after: float | None = Field(
        default=None,
        gt=0,
        description="seconds without an answer after which another replica is asked, too",
    )
    batch_scheduling: bool = Field(
        default=False,
        description="SCHED_BATCH: more requests a second, and later answers while models load "
        "beside it",
    )
    stop_grace: float = Field(default=5.0, ge=0)
    # Of each process. A Triton takes no more header bytes either.
    max_header_bytes: int = Field(default=8 * 1024, ge=1024, le=MAX_MESSAGE)
    max_streams: int = Field(
        default=10_000, ge=1, le=MAX_MESSAGE, description="calls at a time on one connection"
    )
    max_connections: int | None = Field(default=None, ge=1, le=MAX_MESSAGE)
    # By default, all clients of a Router that comes back may call at once.
    max_pending: int = Field(
        default=20_000, ge=1, le=MAX_MESSAGE, description="calls that it has not begun with"
    )
    connection_age: float | None = Field(default=None, gt=0)
    connection_grace: float | None = Field(default=None, gt=0)
    connection_idle: float | None = Field(default=3600.0, gt=0)
    shared_memory: bool = Field(
        default=False, description="callers on this host may send tensors in shared memory"
    )
    tenant_limits: dict[str, TenantSettings] = Field(
        default_factory=dict, description="by tenant, * for all without their own"
    )
    # Known by measuring for every model that is not named here.
    in_flight_limits: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="of one replica, by model, * for all without their own"
    )
    queue_requests: int = Field(default=QUEUE_REQUESTS, ge=1, description="that wait for a version")
    queue_bytes: int = Field(default=QUEUE_BYTES, ge=1, description="of all requests that wait")
    queue_seconds: float = Field(default=QUEUE_SECONDS, gt=0, description="without a deadline")
    workers: int = Field(default=1, ge=1, le=64, description="processes that share the ports")
    worker: int | None = Field(default=None, ge=0, description="set by the parent of workers")
    worker_sockets: Path = Path()

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
        """Above the Router's own limit, so that it is its own error that a caller sees."""
        return min(MAX_MESSAGE, self.max_message_bytes + EXCESS)

    def held_bytes(self, memory: int) -> int:
        """Of all requests under way in this process; `memory`: bytes of the machine. Unless it is
        set, an eighth of that, and enough for some of the largest."""
        limit = self.max_held_bytes
        if limit is None:
            limit = max(memory // MEMORY_PART, LARGEST_HELD * self.max_message_bytes)
        return max(1, limit // self.workers)

    @property
    def limits(self) -> Limits:
        """Without a number of connections, as many as leave files for what the Router itself opens
        to servers and Controllers."""
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
    def controllers(self) -> list[str]:
        return list(dict.fromkeys(self.controller.split(",")))

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.queue_requests, self.queue_bytes, self.queue_seconds)

    @property
    def patience(self) -> float:
        if self.controller_patience is not None:
            return self.controller_patience
        return ALONE_PATIENCE if len(self.controllers) == 1 else TAKE_OVER_PATIENCE


def tenant_limits(settings: Mapping[str, TenantSettings]) -> dict[str, TenantLimit]:
    anybody = settings.get(ANYBODY, TenantSettings()).over(TenantLimit())
    return {name: tenant.over(anybody) for name, tenant in settings.items()}
