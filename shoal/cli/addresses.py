"""The addresses of the services: from options, else the environment, else by default."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

HOST: Final = "127.0.0.1"


class BadAddress(ValueError):
    """An option or a variable that is not a host and a port."""


class NotAnnounced(Exception):
    """The file of `--announce` does not exist, or is another file."""


@dataclass(frozen=True)
class Given:
    """The options of the command line; None for those that are not given."""

    router: str | None = None
    controller: str | None = None
    registry: str | None = None
    announce: Path | None = None


@dataclass(frozen=True)
class Addresses:
    """The `host:port` of each service.

    `controller` can be several, separated by commas. `collector` speaks OTLP over HTTP; it is None
    where there is none.
    """

    router: str
    controller: str
    registry: str
    collector: str | None


class _Known(NamedTuple):
    """The places where a service's address may stand, and its default port."""

    flag: str
    variable: str
    port_variable: str
    announced: str
    port: int
    several: bool = False


_ROUTER: Final = _Known("--router", "SHOAL_ROUTER", "SHOAL_ROUTER_GRPC_PORT", "router_grpc", 8001)
_CONTROLLER: Final = _Known(
    "--controller", "SHOAL_CONTROLLER", "SHOAL_CONTROLLER_PORT", "controller", 9102, several=True
)
_REGISTRY: Final = _Known("--registry", "SHOAL_REGISTRY", "SHOAL_REGISTRY_PORT", "registry", 9101)
_COLLECTOR_PORT: Final = "SHOAL_OTLP_HTTP_PORT"
_COLLECTOR_DEFAULT: Final = 4318


def find(given: Given, environment: Mapping[str, str]) -> Addresses:
    """Return the addresses. Raises BadAddress and NotAnnounced, whose texts say what to do."""
    by_flag = None if given.announce is None else announced(given.announce)
    path = environment.get("SHOAL_ANNOUNCE")
    by_variable = announced(Path(path)) if path and by_flag is None else None

    def one(known: _Known, flag: str | None) -> str:
        if flag is not None:
            return _addresses(flag, known.flag, known)
        if by_flag is not None:
            return str(by_flag[known.announced])
        if variable := environment.get(known.variable):
            return _addresses(variable, known.variable, known)
        if by_variable is not None:
            return str(by_variable[known.announced])
        return f"{HOST}:{_port(known, environment)}"

    return Addresses(
        router=one(_ROUTER, given.router),
        controller=one(_CONTROLLER, given.controller),
        registry=one(_REGISTRY, given.registry),
        collector=_collector(by_flag or by_variable, environment),
    )


def announced(path: Path) -> dict[str, Any]:
    """Return the endpoints in the file that `shoal up --announce` keeps. Raises NotAnnounced."""
    try:
        endpoints = json.loads(path.read_text())["endpoints"]
        controllers = endpoints.get("controllers") or {"": endpoints["controller"]}
        return {known.announced: endpoints[known.announced] for known in _ANNOUNCED} | {
            "controller": ",".join(controllers.values()),
            "collector_http": endpoints["collector_http"],
        }
    except OSError as error:
        raise NotAnnounced(
            f"no stack is announced in {path} ({error.strerror}): "
            f"start one with `shoal up --announce {path}`"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotAnnounced(f"{path} was not written by `shoal up --announce`") from error


_ANNOUNCED: Final = (_ROUTER, _CONTROLLER, _REGISTRY)


def _port(known: _Known, environment: Mapping[str, str]) -> int:
    text = environment.get(known.port_variable)
    if not text:
        return known.port
    if text == "0":
        raise BadAddress(
            f"{known.port_variable} is 0, so `shoal up` picked a free port: give {known.flag} "
            "HOST:PORT, or --announce with the same file as `shoal up`"
        )
    return int(_checked(f"{HOST}:{text}", known.port_variable).rpartition(":")[2])


def _collector(endpoints: Mapping[str, Any] | None, environment: Mapping[str, str]) -> str | None:
    if endpoints is not None:
        address = endpoints["collector_http"]
        return None if address is None else str(address)
    text = environment.get(_COLLECTOR_PORT) or str(_COLLECTOR_DEFAULT)
    return None if text == "0" else _checked(f"{HOST}:{text}", _COLLECTOR_PORT)


def _addresses(text: str, where: str, known: _Known) -> str:
    if not known.several:
        return _checked(text, where)
    return ",".join(_checked(address.strip(), where) for address in text.split(","))


def _checked(address: str, where: str) -> str:
    host, _, port = address.rpartition(":")
    if (
        not host
        or "," in host
        or not (port.isascii() and port.isdigit())
        or not 0 < int(port) < 65536
    ):
        raise BadAddress(f"{where}: {address!r} is not HOST:PORT")
    return address
