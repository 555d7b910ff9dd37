"""The Router's settings: environment variables that start with SHOAL_ROUTER_."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

MAX_MESSAGE = 2**31 - 1  # bytes; what tritonclient allows itself
ALONE_PATIENCE = 5.0  # seconds
TAKE_OVER_PATIENCE = 30.0  # seconds; a lease runs out first, in 10 s unless it is set otherwise

_ADDRESS = r"[^,]+:\d+"


class Settings(BaseSettings):
    """`controller`: host:port of each Controller, separated by commas; the one that acts is
    followed. `controller_patience`: of a cold request, while none acts; by default longer than a
    take-over lasts where there are several. `state_dir`: where the last table is kept, empty for
    nowhere. `max_message_bytes`: of one request. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="SHOAL_ROUTER_", extra="forbid")

    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    controller: Annotated[str, StringConstraints(pattern=rf"^{_ADDRESS}(,{_ADDRESS})*$")] = (
        "127.0.0.1:9102"
    )
    state_dir: Path | None = None
    max_message_bytes: int = Field(default=MAX_MESSAGE, gt=0, le=MAX_MESSAGE)
    trusted_proxies: list[str] = Field(default_factory=list)
    controller_patience: float | None = Field(default=None, ge=0)
    batch_scheduling: bool = Field(
        default=False,
        description="SCHED_BATCH: more requests a second, and later answers while models load "
        "beside it",
    )
    stop_grace: float = Field(default=5.0, ge=0)

    @property
    def controllers(self) -> list[str]:
        return list(dict.fromkeys(self.controller.split(",")))

    @property
    def patience(self) -> float:
        if self.controller_patience is not None:
            return self.controller_patience
        return ALONE_PATIENCE if len(self.controllers) == 1 else TAKE_OVER_PATIENCE
