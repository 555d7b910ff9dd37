"""The Router's settings: environment variables that start with SHOAL_ROUTER_."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

MAX_MESSAGE = 2**31 - 1  # bytes; what tritonclient allows itself


class Settings(BaseSettings):
    """`controller`: host:port. `state_dir`: where the last table is kept, empty for nowhere.
    `max_message_bytes`: of one request. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="SHOAL_ROUTER_", extra="forbid")

    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    controller: Annotated[str, StringConstraints(pattern=r"^.+:\d+$")] = "127.0.0.1:9102"
    state_dir: Path | None = None
    max_message_bytes: int = Field(default=MAX_MESSAGE, gt=0, le=MAX_MESSAGE)
    trusted_proxies: list[str] = Field(default_factory=list)
    controller_patience: float = Field(
        default=5.0, ge=0, description="how long a cold request waits for a Controller to come back"
    )
    stop_grace: float = Field(default=5.0, ge=0)
