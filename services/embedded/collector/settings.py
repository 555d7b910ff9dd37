"""The embedded collector's settings, from environment variables that begin with SHOAL_OTLP_."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CollectorSettings(BaseSettings):
    """The embedded collector keeps the last traces in memory, for `shoal trace`."""

    model_config = SettingsConfigDict(
        env_prefix="SHOAL_OTLP_", env_ignore_empty=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    grpc_port: int = Field(default=4317, ge=0, le=65535)
    """Port of OTLP over gRPC; 0 picks a free one."""
    http_port: int = Field(default=4318, ge=0, le=65535)
    """Port of OTLP over HTTP, and for reading traces; 0 picks a free one."""
    max_spans: int = Field(default=50_000, ge=1)
    """The most spans kept; the oldest traces go first."""
