"""The routing rules: from what a request names to the version that answers it.

The rules are plain data (default, aliases, arms), so that they can be compiled to other tables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from services.common.errors import (
    InvalidName,
    InvalidVersion,
    ModelNotFound,
    NoApprovedVersion,
    NotServable,
    ShoalError,
    VersionNotFound,
)
from services.router.core.errors import VersionNotANumber
from shoal.names import is_model_name, parse_version

_NUMBER: Final = re.compile(r"\s*[+-]?[0-9]")  # how what Triton reads as a number begins


class Target(NamedTuple):
    """A model version."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}:{self.version}"


class Replica(NamedTuple):
    """A model version on a server."""

    server: str
    target: Target


@dataclass(frozen=True, slots=True)
class VersionRoute:
    """A model version as the table knows it."""

    config_digest: str = ""
    #: The servers on which it is READY.
    servers: tuple[str, ...] = ()
    #: Whether it may be asked for at all.
    servable: bool = True
    #: Why it is not resident.
    reason: str = ""
    #: Whether it gives any number of replies to a request; None if that is not known.
    decoupled: bool | None = None
    #: Changes with its files and its config.
    fingerprint: str = ""

    #: Why it cannot be served at all; "" if it can, or is rejected.
    problem: str = ""

    @property
    def identity(self) -> str:
        """What changes whenever its config or its files do, or those that it is made of."""
        return f"{self.config_digest} {self.fingerprint}"


@dataclass(frozen=True, slots=True)
class Arm:
    """A share of the traffic for a model. `version` 0 stands for the default of the arm's model."""

    model: str
    version: int
    weight: int


@dataclass(frozen=True, slots=True)
class Route:
    """The routing rules of a model."""

    #: 0 if no version is approved.
    default_version: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[int, VersionRoute] = field(default_factory=dict)
    #: The arms of the traffic policy. If there are none, the default version gets all traffic.
    arms: tuple[Arm, ...] = ()
    #: Whether a request may be sent again after a server broke off with it.
    retry: bool = True


Routes = Mapping[str, Route]


def resolve(routes: Routes, model: str, version: str, draw: float) -> Target:
    """Return the version that a request means.

    `version` is a number, an alias, or "" for the choice of the traffic policy, which is made by
    `draw`, uniform in [0, 1). Raises InvalidName, ModelNotFound, InvalidVersion,
    VersionNotANumber, VersionNotFound, NoApprovedVersion, and NotServable for a model of which no
    version can be served."""
    route = routes.get(model)
    if route is None:
        if not is_model_name(model):
            raise InvalidName("model_name", model)
        raise ModelNotFound(model=model)
    if version:
        return _named(route, model, version)
    if route.arms:
        return _drawn(routes, route.arms, draw)
    return _default(model, route)


def shares(routes: Routes, model: str, version: str) -> list[tuple[Target, float]]:
    """Return every target that `resolve` could give for a request, with its probability."""
    route = routes.get(model)
    if route is None or version or not route.arms:
        return [(resolve(routes, model, version, 0.0), 1.0)]
    total = sum(arm.weight for arm in route.arms)
    return [(_of_arm(routes, arm), arm.weight / total) for arm in route.arms if arm.weight]


def why(routes: Routes, model: str, version: str, target: Target) -> str:
    """Return in words why a request for `model` and `version` meant `target`."""
    if version:
        return f"version {version!r} was asked for: {target}"
    if not routes[model].arms:
        return f"no version was asked for, the default is {target.version}"
    share = sum(share for arm, share in shares(routes, model, version) if arm == target)
    return f"no version was asked for, the traffic policy gives {share:.0%} to {target}"


def _named(route: Route, model: str, version: str) -> Target:
    number = parse_version(version) or route.aliases.get(version)
    if number is None:
        if _NUMBER.match(version):
            raise InvalidVersion(model=model, version=version[:64])
        raise VersionNotANumber(model=model, version=version[:64])
    if number not in route.versions:
        raise VersionNotFound(model=model, version=version, versions=_listed(route))
    return Target(model, number)


def _drawn(routes: Routes, arms: tuple[Arm, ...], draw: float) -> Target:
    left = draw * sum(arm.weight for arm in arms)
    for arm in arms:
        left -= arm.weight
        if left < 0:
            return _of_arm(routes, arm)
    return _of_arm(routes, arms[-1])


def _of_arm(routes: Routes, arm: Arm) -> Target:
    route = routes.get(arm.model)
    if route is None:
        raise ModelNotFound(model=arm.model)
    if arm.version:
        return Target(arm.model, arm.version)
    return _default(arm.model, route)


def _default(model: str, route: Route) -> Target:
    if not route.default_version:
        raise _no_default(model, route)
    return Target(model, route.default_version)


def _no_default(model: str, route: Route) -> ShoalError:
    """Return the error that says what the model lacks: an approval, or a version to approve."""
    broken = max((number for number, one in route.versions.items() if one.problem), default=0)
    if broken and not any(one.servable for one in route.versions.values()):
        return NotServable(model=model, version=broken, problem=route.versions[broken].problem)
    return NoApprovedVersion(model=model, versions=_listed(route))


def _listed(route: Route) -> str:
    return ", ".join(map(str, sorted(route.versions))) or "none"
