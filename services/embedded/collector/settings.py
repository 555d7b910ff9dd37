"""The collector's settings, from `SHOAL_OTLP_*`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CollectorSettings(BaseSettings):
    """Settings of the collector. Port 0 picks a free port."""

    model_config = SettingsConfigDict(env_prefix="SHOAL_OTLP_", env_ignore_empty=True)

    host: str = "127.0.0.1"
    grpc_port: int = Field(default=4317, ge=0, le=65535)
    http_port: int = Field(default=4318, ge=0, le=65535)
    max_spans: int = Field(default=50_000, ge=1)
