"""The Registry's settings, from environment variables that begin with SHOAL_REGISTRY_."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL

from services.common.units import Bytes, Seconds
from services.registry.sources.settings import OriginSettings

DATABASE_FILE = "registry.db"


def _words(separator: str) -> BeforeValidator:
    """Return a validator that reads a list from JSON, or from words between separators."""

    def split(value: object) -> object:
        if not isinstance(value, str):
            return value
        text = value.strip()
        return json.loads(text) if text.startswith("[") else [*filter(None, text.split(separator))]

    return BeforeValidator(split)


Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Folders = Annotated[tuple[Folder, ...], NoDecode, _words(os.pathsep)]
Networks = Annotated[tuple[str, ...], NoDecode, _words(",")]
Scheme = Literal["file", "upload", "https", "s3", "gs", "az", "hf", "oci", "mlflow"]
Schemes = Annotated[tuple[Scheme, ...], NoDecode, _words(",")]
Port = Annotated[int, Field(ge=0, le=65535)]


class RegistrySettings(BaseSettings):
    """The Registry knows what exists: models, versions, aliases, approvals, traffic policies."""

    model_config = SettingsConfigDict(
        env_prefix="SHOAL_REGISTRY_",
        env_parse_none_str="none",
        frozen=True,
        hide_input_in_errors=True,  # a value that is refused may hold a credential
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback, administrative calls are accepted only from trusted
    proxies."""
    port: Port = 9101
    """Port of the gRPC API; 0 picks a free one."""
    metrics_port: Port | None = 9111
    """Port of the Prometheus metrics; 0 picks a free one, `none` turns them off."""
    data_dir: Folder = Field(default=Path(".shoal"), validate_default=True)
    """Folder for the SQLite database and, unless it is set, the staging tree."""
    database_url: SecretStr | None = None
    """`sqlite:////path` or `postgresql://user:password@host/database`. By default an SQLite file in
    `data_dir`."""
    staging_dir: Folder | None = None
    """Folder for the staging tree, the model repository of every Triton. By default `staging` in
    `data_dir`."""
    repositories: Folders = ()
    """Model repositories to import at start: paths separated by `:`, or a JSON list."""
    link_roots: Folders = (Path("/"),)
    """Folders that links in `repositories` may lead into, besides their own repository: paths
    separated by `:`, or a JSON list, such as `[]` for none. Links in what callers register or
    import never lead out."""
    store_dir: Folder | None = None
    """Folder for the files of versions that are not served in place. By default `store` in
    `data_dir`. Servers need not see it where it lies on the file system of the staging tree."""
    store_budget: Bytes | None = None
    """The most that the store's files may take on disk. Beyond it, what can be fetched again leaves
    first, the least recently used. `none`: no limit."""
    store_free: Bytes = 1 << 30
    """How much of the store's file system is left free, whatever the budget."""
    fetches: int = Field(default=8, ge=1, le=256)
    """The number of files that are fetched at a time."""
    origins: OriginSettings = Field(default_factory=OriginSettings)
    """Addresses and limits of the places that models come from: a JSON object, see below."""
    source_watch_seconds: Seconds = Field(default=60.0, gt=0)
    """How often sources that are watched are looked at."""
    signature_keys: Folders = ()
    """Files with the public keys (PEM, elliptic curves) of those whose signatures of models count:
    paths separated by `:`, or a JSON list. Without any, signatures are not checked."""
    signature_required: bool = False
    """Whether only signed models are taken in, besides those in `repositories`."""
    poll_seconds: Seconds = Field(default=0.0, ge=0)
    """How often `repositories` are imported again, to find what has changed in them. 0: never."""
    trusted_proxies: Networks = ()
    """Addresses or networks whose `x-shoal-subject`, `x-shoal-tenant` and `x-shoal-roles` headers
    are believed: separated by commas, or a JSON list."""
    default_instance_kind: Literal["KIND_AUTO", "KIND_CPU", "KIND_GPU", "KIND_MODEL"] = "KIND_AUTO"
    """Where the instances of a model run whose config does not say it, unless its backend may have
    a preference (OpenVINO, custom ones). With `KIND_AUTO`, Triton uses a GPU if there is one."""
    code_sources: Schemes = ("file",)
    """Schemes of sources whose models may run code that comes with them: Python models, pickles,
    classes for weights. `file` are folders of this host; the others are `upload`, `https`, `s3`,
    `gs`, `az`, `hf`, `oci` and `mlflow`. Separated by commas, or a JSON list, such as `[]` for
    none. See [formats](formats.md)."""
    tensorrt_version: str = Field(default="", pattern=r"(\d+\.\d+)?")
    """The TensorRT of the servers, such as `10.5`. Plans built with another are refused. Empty: the
    servers find out."""
    watch_checkpoint_seconds: Seconds = Field(default=5.0, gt=0)
    """How often an idle watch tells its revision."""
    stop_grace_seconds: Seconds = Field(default=2.0, ge=0)
    """How long a stopping Registry finishes the calls it has begun."""

    @model_validator(mode="after")
    def _signatures_have_keys(self) -> "RegistrySettings":
        if self.signature_required and not self.signature_keys:
            raise ValueError("signature_required needs a key in signature_keys")
        return self

    @property
    def database(self) -> str:
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        file = URL.create("sqlite", database=str(self.data_dir / DATABASE_FILE))
        return file.render_as_string(hide_password=False)

    @property
    def store(self) -> Path:
        return self.store_dir or self.data_dir / "store"

    @property
    def staging(self) -> Path:
        return self.staging_dir or self.data_dir / "staging"
