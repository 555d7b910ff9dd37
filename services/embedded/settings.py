"""The settings of a stack: flags come before environment variables, then a file, then defaults."""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    UrlConstraints,
    ValidationError,
    model_validator,
)

from services.common.units import Seconds, Unit
from services.embedded.errors import BadSettings
from services.embedded.triton_options import TritonOptions, words
from shoal.sizes import parse_size

ENV_PREFIX: Final = "SHOAL_"

Size = Annotated[
    int, Unit("size"), BeforeValidator(lambda value: parse_size(str(value))), Field(gt=0)
]
Port = Annotated[int, Field(ge=0, le=65535)]
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
CollectorUrl = Annotated[AnyHttpUrl, UrlConstraints(host_required=True)]


class StackSettings(BaseModel):
    """`shoal up` runs everything on one machine. Each setting is a flag (`--memory-budget`), an
    environment variable (`SHOAL_MEMORY_BUDGET`) and a key of the file given with `--config`
    (`memory-budget`). All ports are on loopback; port 0 picks a free one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    repository: tuple[Folder, ...] = ()
    """Triton model repositories to serve; they are only read. The flag can be repeated, the
    variable separates paths by `:`. In a checkout the default is its `model_repository`, unless
    `data` is given."""
    poll: Seconds = Field(default=0.0, ge=0)
    """How often to look for changes in the repositories, as Triton's poll mode does. 0: only when
    `shoal import` or a load call asks for it."""
    servers: int = Field(default=1, ge=1, le=64)
    """Triton servers to start."""
    controllers: int = Field(default=1, ge=1, le=8)
    """Controllers to start; one acts, the others stand by."""
    router_workers: int = Field(default=1, ge=1, le=64)
    """Router processes that share its ports."""
    lane: Literal["auto", "on", "off"] = "auto"
    """Whether Envoy in front of the Router sends what it can straight to the servers: `on`, `off`,
    or `auto`, which means if its wheel is installed."""
    memory_budget: Size | None = None
    """Memory for models on each server, such as `8GiB`, beyond what the server itself takes. By
    default half of what the machine has free, divided among the servers."""
    max_models: int = Field(default=0, ge=0)
    """The most units in memory on each server; 0 for no such limit."""
    data: Folder | None = None
    """Folder that keeps what is registered, and logs. By default a temporary one, deleted when the
    stack stops."""
    otlp: CollectorUrl | None = None
    """OTLP/HTTP collector to send traces to (`http://HOST:4318`). By default one is started with
    the stack."""
    no_otlp: bool = False
    """Whether to do without traces altogether."""
    trace_ratio: float = Field(default=0.01, ge=0, le=1)
    """Share of requests to trace. A request with a sampled `traceparent` is always traced."""
    router_grpc_port: Port = 8001
    """The Router's port for gRPC."""
    router_http_port: Port = 8000
    """The Router's port for HTTP."""
    registry_port: Port = 9101
    """The Registry's port."""
    registry_metrics_port: Port = 9111
    """The Registry's port for Prometheus metrics."""
    controller_port: Port = 9102
    """The first Controller's port."""
    controller_metrics_port: Port = 9112
    """The first Controller's port for Prometheus metrics."""
    otlp_grpc_port: Port = 4317
    """The embedded collector's port for OTLP over gRPC."""
    otlp_http_port: Port = 4318
    """The embedded collector's port for OTLP over HTTP, and for reading traces."""
    triton_venv: Folder | None = None
    """Triton's environment, made by `shoal setup-triton`. By default where that puts it."""
    triton_option: TritonOptions = ()
    """An option of Triton's own for every server, such as `--grpc-header-forward-pattern=x-.*`.
    The flag can be repeated; the variable takes several as a shell does, quoted if need be."""
    announce: Folder | None = None
    """A JSON file that is kept up to date with the stack's state, addresses and processes."""

    @model_validator(mode="after")
    def _one_collector(self) -> "StackSettings":
        if self.otlp is not None and self.no_otlp:
            raise ValueError("otlp names a collector and no_otlp wants none: give one of them")
        return self


class Given(NamedTuple):
    value: Any
    where: str  # as a person would name it: "--servers", "SHOAL_SERVERS", "shoal.toml: servers"


def load(
    flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None
) -> StackSettings:
    """Return the settings from `flags` (keys with underscores, only those that were given), the
    environment and the file. Raises BadSettings."""
    given = {key: Given(value, flag(key)) for key, value in flags.items()}
    merged = {**_from_file(config), **_from_environment(environment), **given}
    try:
        settings = StackSettings.model_validate({key: one.value for key, one in merged.items()})
    except ValidationError as error:
        raise BadSettings("\n".join(_complaints(error, merged))) from error
    for folder in settings.repository:
        if reason := _no_repository(folder):
            raise BadSettings(f"{merged['repository'].where}: {reason}")
    return settings


def _no_repository(folder: Path) -> str:
    """Return why a folder cannot be a model repository, or "" if it can."""
    if not folder.exists():
        return f"there is no {folder}"
    if not folder.is_dir():
        return f"{folder} is not a folder"
    try:
        inside = [path.name for path in folder.iterdir() if path.is_dir()]
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}"
    if (folder / "config.pbtxt").is_file() and inside and all(map(str.isdecimal, inside)):
        return (
            f"{folder} is a model, and a repository is a folder with models in it: give "
            f"{folder.parent}, or register the model with `shoal register` in a running stack"
        )
    return ""


def flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def variable(key: str) -> str:
    return f"{ENV_PREFIX}{key.upper()}"


def _from_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    found = {
        key: Given(environment[variable(key)], variable(key))
        for key in StackSettings.model_fields
        if environment.get(variable(key))
    }
    if folders := found.get("repository"):
        found["repository"] = folders._replace(value=folders.value.split(os.pathsep))
    if options := found.get("triton_option"):
        try:
            found["triton_option"] = options._replace(value=words(options.value))
        except ValueError as error:
            raise BadSettings(f"{options.where}: {error}") from error
    return found


def _from_file(path: Path | None) -> dict[str, Given]:
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(f"--config: {path} cannot be read: {error}") from error
    keys = {key: key.replace("-", "_") for key in content}
    if unknown := [key for key in keys if keys[key] not in StackSettings.model_fields]:
        raise BadSettings("\n".join(_unknown(path, key) for key in unknown))
    return {
        keys[key]: Given(_beside(path, keys[key], value), f"{path}: {key}")
        for key, value in content.items()
    }


def _beside(path: Path, key: str, value: Any) -> Any:
    """Return `value` with folders relative to the file, not to where the command is run."""
    if key == "repository":
        folders = [value] if isinstance(value, str) else value
        return [path.parent / Path(folder).expanduser() for folder in folders]
    if key in ("data", "triton_venv", "announce") and isinstance(value, str):
        return path.parent / Path(value).expanduser()
    return value


def _unknown(path: Path, key: str) -> str:
    known = [name.replace("_", "-") for name in StackSettings.model_fields]
    near = difflib.get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0)
    return f"{path}: there is no key {key!r}; the nearest is {near[0]!r}"


def _complaints(error: ValidationError, given: Mapping[str, Given]) -> Iterator[str]:
    for one in error.errors():
        key = str(one["loc"][0]) if one["loc"] else ""
        text = one["msg"].removeprefix("Value error, ")
        value = "" if repr(one["input"]) in text else f", not {one['input']!r}"
        yield f"{given[key].where}: {text}{value}" if key in given else text
