"""The Registry's settings, from its environment: SHOAL_REGISTRY_PORT and so on."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL

DATABASE_FILE = "registry.db"


def _words(separator: str) -> BeforeValidator:
    """Accept a list as JSON, or as words between separators."""

    def split(value: object) -> object:
        if not isinstance(value, str):
            return value
        text = value.strip()
        return json.loads(text) if text.startswith("[") else [*filter(None, text.split(separator))]

    return BeforeValidator(split)


Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Folders = Annotated[tuple[Folder, ...], NoDecode, _words(os.pathsep)]
Networks = Annotated[tuple[str, ...], NoDecode, _words(",")]
Port = Annotated[int, Field(ge=0, le=65535)]


class RegistrySettings(BaseSettings):
    """Port 0 picks a free port, and `metrics_port` may be none. Folders become absolute paths.

    When bound beyond loopback, the Registry takes administrative calls only through
    `trusted_proxies`. `database_url` is sqlite:////path or postgresql://…; without it, there is an
    SQLite file in `data_dir`. `staging_dir` is the model root of every server, by default in
    `data_dir`. `repositories` are imported at start, and separated by colons.
    `default_instance_kind` is for configs that name no kind; with KIND_AUTO, Triton takes a GPU if
    there is one.
    """

    model_config = SettingsConfigDict(
        env_prefix="SHOAL_REGISTRY_", env_parse_none_str="none", frozen=True
    )

    host: str = "127.0.0.1"
    port: Port = 9101
    metrics_port: Port | None = 9111
    data_dir: Folder = Field(default=Path(".shoal"), validate_default=True)
    database_url: SecretStr | None = None
    staging_dir: Folder | None = None
    repositories: Folders = ()
    trusted_proxies: Networks = ()
    default_instance_kind: Literal["KIND_AUTO", "KIND_CPU", "KIND_GPU", "KIND_MODEL"] = "KIND_AUTO"
    watch_checkpoint_seconds: float = Field(default=5.0, gt=0)
    stop_grace_seconds: float = Field(default=2.0, ge=0)

    @property
    def database(self) -> str:
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        file = URL.create("sqlite", database=str(self.data_dir / DATABASE_FILE))
        return file.render_as_string(hide_password=False)

    @property
    def staging(self) -> Path:
        return self.staging_dir or self.data_dir / "staging"
