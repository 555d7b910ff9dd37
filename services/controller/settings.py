"""The Controller's settings: environment variables that start with SHOAL_CONTROLLER_."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

Address = Annotated[str, StringConstraints(pattern=r"^.+:\d+$")]


class ServerSettings(BaseModel):
    """One Triton. `memory_budget`: bytes by resource over the server's own baseline; `local`: its
    processes run on this host, so that their memory can be measured."""

    id: str
    address: Address
    memory_budget: dict[str, int] = Field(default_factory=dict)
    max_models: int = Field(default=0, ge=0)
    local: bool = True


class Settings(BaseSettings):
    """`registry`: host:port. `holder`: the stable name under which it asks for the lease.
    `triton_admin_key`: for Triton's restricted protocols. `selfcheck_model`: an identity model in
    every server's repository, compared at attachment; empty: no check. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="SHOAL_CONTROLLER_", extra="forbid")

    host: str = "127.0.0.1"
    port: int = 9102
    metrics_port: int = 9112
    registry: Address = "127.0.0.1:9101"
    holder: str = "controller"
    servers: list[ServerSettings] = Field(default_factory=list)
    triton_admin_key: SecretStr = SecretStr("")
    selfcheck_model: str = ""
    trusted_proxies: list[str] = Field(default_factory=list)
    staging_dir: Path | None = None

    health_interval: float = Field(default=0.5, gt=0)
    measure_interval: float = Field(default=0.5, gt=0)
    load_timeout: float = Field(default=300.0, gt=0)
    unload_timeout: float = Field(default=60.0, gt=0)
    max_wait: float = Field(default=300.0, gt=0, description="for callers without a deadline")
    lease_ttl: float = Field(default=10.0, gt=1)
    server_patience: float = Field(default=15.0, ge=0)
    router_lease: float = Field(default=5.0, gt=0)
    loads_per_server: int = Field(default=2, ge=1)
    load_backoff: float = Field(default=5.0, gt=0)
