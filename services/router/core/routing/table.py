"""The placement table of one Router, and what its changes withdraw."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from services.router.core.routing.routes import Replica, Route, Target, VersionRoute, resolve
from services.router.core.wire.request import override


class Revision(NamedTuple):
    """A revision of the table, numbered within the epoch of the Controller that made it."""

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"revision {self.number} of epoch {self.epoch}"


NONE = Revision(0, 0)


class Resolution(NamedTuple):
    """The version that a request means."""

    target: Target
    #: To be appended to the request's message, for Tritons know neither aliases nor traffic
    #: policies.
    suffix: bytes
    #: Whether the request may be sent again after a server broke off with it.
    retry: bool
    #: Whether a model other than the one asked for answers.
    renamed: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A change to the table."""

    revision: Revision
    #: Whether it replaces the table, rather than parts of it.
    whole: bool
    routes: Mapping[str, Route]
    addresses: Mapping[str, str]
    #: Those of `addresses` that the Controller has not inventoried yet.
    unknown_servers: frozenset[str] = frozenset()
    removed_models: frozenset[str] = frozenset()
    removed_servers: frozenset[str] = frozenset()
    #: Whether anything is resident that is not registered.
    unregistered: bool = False
    #: host:port of HTTP, of those of the servers in `addresses` that have it.
    http_addresses: Mapping[str, str] = field(default_factory=dict)


class StaleEpoch(Exception):
    """The change comes from a Controller that no longer acts."""


@dataclass
class Table:
    """The placement table."""

    revision: Revision = NONE
    #: Routes by model.
    routes: dict[str, Route] = field(default_factory=dict)
    #: host:port by server.
    addresses: dict[str, str] = field(default_factory=dict)
    #: host:port of HTTP, of the servers that have it.
    http_addresses: dict[str, str] = field(default_factory=dict)
    #: The revision at which a replica was last taken away. Older grants of it do not count.
    withdrawn: dict[Replica, Revision] = field(default_factory=dict)
    #: Servers that the Controller has not inventoried yet. They are taken to hold what they held.
    unknown: frozenset[str] = frozenset()
    #: The READY replicas by version. None of the tuples is empty.
    ready: dict[Target, tuple[Replica, ...]] = field(default_factory=dict)
    #: The number of versions that are, or may be, decoupled.
    maybe_decoupled: int = 0
    #: Whether anything is resident that `routes` do not have.
    unregistered: bool = False
    #: What requests mean, where that does not depend on the draw.
    _resolutions: dict[tuple[str, str], Resolution] = field(default_factory=dict)

    @property
    def none_decoupled(self) -> bool:
        """Whether no version is decoupled, including removed ones that another Router may still
        ask. Only then may requests to such versions use streams of the Router's own: a Triton with
        streams to both kinds of models crashes."""
        return not self.maybe_decoupled and not self.unregistered and bool(self.routes)

    def resolve(self, model: str, version: str, draw: float) -> Resolution:
        """Return what a request for `model` and `version` means. Raises what `routes.resolve`
        raises."""
        known = self._resolutions.get((model, version))
        if known is not None:
            return known
        target = resolve(self.routes, model, version, draw)
        renamed = target.model != model
        resolution = Resolution(
            target,
            override(target.model if renamed else None, target.version),
            self.routes[target.model].retry,
            renamed,
        )
        if version or not self.routes[model].arms:
            self._resolutions[model, version] = resolution
        return resolution

    def apply(self, change: Change) -> set[Replica]:
        """Apply a change and return the replicas that it withdrew. Raises StaleEpoch."""
        if change.revision.epoch < self.revision.epoch:
            raise StaleEpoch(f"epoch {change.revision.epoch} is before {self.revision.epoch}")
        unknown = self._still_unknown(change)
        fresh = {
            model: self._keeping(model, route, unknown) for model, route in change.routes.items()
        }
        gone = set(change.removed_models)
        self._resolutions.clear()
        if change.whole:
            gone |= self.routes.keys() - fresh.keys()
        else:
            found = self.unknown - unknown
            for model in self._models_on(found) - fresh.keys() - gone:
                fresh[model] = _without(self.routes[model], found)
        self.unknown = unknown
        touched = {*fresh, *gone}
        before = dict.fromkeys(replicas(self.routes, touched))
        self.maybe_decoupled -= self._count_maybe_decoupled(touched)
        for model in gone:
            self.routes.pop(model, None)
        self.routes.update(fresh)
        after = dict.fromkeys(replicas(self.routes, touched))
        self.maybe_decoupled += self._count_maybe_decoupled(touched)
        for replica in before:
            self.ready.pop(replica.target, None)
        for replica in after:
            self.ready[replica.target] = (*self.ready.get(replica.target, ()), replica)
        self._readdress(change)
        self.revision = change.revision
        self.unregistered = change.unregistered
        withdrawn = before.keys() - after.keys()
        self.withdrawn.update(dict.fromkeys(withdrawn, change.revision))
        for replica in after.keys() - before.keys():
            self.withdrawn.pop(replica, None)
        return withdrawn

    def entry(self, target: Target) -> VersionRoute | None:
        """Return the version's entry, or None if it is not registered."""
        route = self.routes.get(target.model)
        return route.versions.get(target.version) if route is not None else None

    def servers(self, target: Target) -> tuple[str, ...]:
        """Return the servers on which the version is READY."""
        entry = self.entry(target)
        return entry.servers if entry is not None else ()

    def identity(self, target: Target) -> str:
        """Return what changes with the version's config or files, or "" if it is not registered."""
        entry = self.entry(target)
        return entry.identity if entry is not None else ""

    def holds(self, replica: Replica) -> bool:
        """Return whether the replica is READY."""
        return replica.server in self.servers(replica.target)

    def outdated(self, replica: Replica, revision: Revision) -> bool:
        """Return whether a grant of `replica` at `revision` was overtaken by a withdrawal, or by
        another Controller that acts now."""
        overtaken = self.withdrawn.get(replica, NONE) > revision
        return overtaken or revision.epoch < self.revision.epoch

    def _count_maybe_decoupled(self, models: Iterable[str]) -> int:
        return sum(
            entry.decoupled is not False
            for model in models
            if model in self.routes
            for entry in self.routes[model].versions.values()
        )

    def _readdress(self, change: Change) -> None:
        for server in {*change.removed_servers, *change.addresses}:
            self.addresses.pop(server, None)
            self.http_addresses.pop(server, None)
        if change.whole:
            self.addresses, self.http_addresses = {}, {}
        self.addresses.update(change.addresses)
        self.http_addresses.update(change.http_addresses)

    def _still_unknown(self, change: Change) -> frozenset[str]:
        before = frozenset() if change.whole else self.unknown - change.removed_servers
        return before - change.addresses.keys() | change.unknown_servers

    def _models_on(self, servers: frozenset[str]) -> set[str]:
        """Return the models that have a replica on one of `servers`."""
        return {
            replica.target.model
            for replica in replicas(self.routes, self.routes if servers else ())
            if replica.server in servers
        }

    def _keeping(self, model: str, route: Route, unknown: frozenset[str]) -> Route:
        """Return `route` with the replicas that the table has on servers unknown to the
        Controller."""
        known = self.routes.get(model)
        if known is None or not unknown:
            return route
        versions = dict(route.versions)
        for version, entry in known.versions.items():
            kept = unknown.intersection(entry.servers)
            if kept and version in versions:
                servers = {*versions[version].servers, *kept}
                versions[version] = replace(versions[version], servers=tuple(sorted(servers)))
        return replace(route, versions=versions)


def _without(route: Route, servers: frozenset[str]) -> Route:
    return replace(
        route,
        versions={
            version: replace(entry, servers=tuple(s for s in entry.servers if s not in servers))
            for version, entry in route.versions.items()
        },
    )


def replicas(routes: Mapping[str, Route], models: Iterable[str]) -> Iterable[Replica]:
    """Yield all replicas of `models`."""
    for model in models:
        route = routes.get(model)
        if route is not None:
            for version, entry in route.versions.items():
                for server in entry.servers:
                    yield Replica(server, Target(model, version))
