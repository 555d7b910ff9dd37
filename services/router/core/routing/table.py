"""The placement table of one Router, and what its changes withdraw."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from services.router.core.routing.routes import Replica, Route, Target, VersionRoute, resolve
from services.router.core.wire.request import tail


class Revision(NamedTuple):
    epoch: int
    number: int

    def __str__(self) -> str:
        return f"revision {self.number} of epoch {self.epoch}"


NONE = Revision(0, 0)


class Way(NamedTuple):
    """What a request means. `tail`: appended to its message it says so to a Triton, which knows no
    aliases and no policies. `retry`: whether it may be sent again after a server broke off with it.
    `renamed`: whether another model than the one asked for answers it."""

    target: Target
    tail: bytes
    retry: bool
    renamed: bool


@dataclass(frozen=True, slots=True)
class Change:
    """`whole`: everything, else only what differs. Names in `removed_*` are gone.
    `unknown_servers`: those of `addresses` that the Controller has not inventoried yet.
    `unregistered`: something is resident besides."""

    revision: Revision
    whole: bool
    routes: Mapping[str, Route]
    addresses: Mapping[str, str]
    unknown_servers: frozenset[str] = frozenset()
    removed_models: frozenset[str] = frozenset()
    removed_servers: frozenset[str] = frozenset()
    unregistered: bool = False


class StaleEpoch(Exception):
    """The change comes from a Controller that does not act any more."""


@dataclass
class Table:
    """`routes` by model, `addresses` (host:port) by server. `withdrawn`: the revision at which a
    replica was last taken away; grants that are older do not count. `unknown`: servers that the
    Controller has not inventoried yet; they still hold what they held, as far as we know. `ready`:
    the replicas that `routes` tell of, by version; none is empty. `several`: versions that give any
    number of replies to a request, or may. `unregistered`: something is resident that `routes` do
    not tell of. `_ways`: by what a request asks for, where the draw does not matter."""

    revision: Revision = NONE
    routes: dict[str, Route] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    withdrawn: dict[Replica, Revision] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    ready: dict[Target, tuple[Replica, ...]] = field(default_factory=dict)
    several: int = 0
    unregistered: bool = False
    _ways: dict[tuple[str, str], Way] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether every version gives one reply to a request, also those that another Router may
        still ask after they were removed. Only then may requests go by streams of the Router's own
        to such versions: a Triton with streams to both kinds crashes."""
        return not self.several and not self.unregistered and bool(self.routes)

    def way(self, model: str, version: str, draw: float) -> Way:
        """What a request for `model` and `version` means; raises as `resolve` does."""
        known = self._ways.get((model, version))
        if known is not None:
            return known
        target = resolve(self.routes, model, version, draw)
        renamed = target.model != model
        way = Way(
            target,
            tail(target.model if renamed else None, target.version),
            self.routes[target.model].retry,
            renamed,
        )
        if version or not self.routes[model].arms:
            self._ways[model, version] = way
        return way

    def apply(self, change: Change) -> set[Replica]:
        """Take a change in; return the replicas that it withdrew. Raises StaleEpoch."""
        if change.revision.epoch < self.revision.epoch:
            raise StaleEpoch(f"epoch {change.revision.epoch} is before {self.revision.epoch}")
        unknown = self._still_unknown(change)
        fresh = {
            model: self._keeping(model, route, unknown) for model, route in change.routes.items()
        }
        gone = set(change.removed_models)
        self._ways.clear()
        if change.whole:
            gone |= self.routes.keys() - fresh.keys()
        else:
            found = self.unknown - unknown
            for model in self._on(found) - fresh.keys() - gone:
                fresh[model] = _without(self.routes[model], found)
        self.unknown = unknown
        touched = {*fresh, *gone}
        before = dict.fromkeys(replicas(self.routes, touched))
        self.several -= self._several(touched)
        for model in gone:
            self.routes.pop(model, None)
        self.routes.update(fresh)
        after = dict.fromkeys(replicas(self.routes, touched))
        self.several += self._several(touched)
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
        """None where the version is not registered."""
        route = self.routes.get(target.model)
        return route.versions.get(target.version) if route is not None else None

    def servers(self, target: Target) -> tuple[str, ...]:
        """Where the version is READY."""
        entry = self.entry(target)
        return entry.servers if entry is not None else ()

    def digest(self, target: Target) -> str:
        """Of the version's config; empty where it is not registered."""
        entry = self.entry(target)
        return entry.config_digest if entry is not None else ""

    def holds(self, replica: Replica) -> bool:
        return replica.server in self.servers(replica.target)

    def outdated(self, replica: Replica, revision: Revision) -> bool:
        """Whether a grant of `replica` at `revision` was overtaken: by a withdrawal, or by another
        Controller that acts now."""
        overtaken = self.withdrawn.get(replica, NONE) > revision
        return overtaken or revision.epoch < self.revision.epoch

    def _several(self, models: Iterable[str]) -> int:
        return sum(
            entry.decoupled is not False
            for model in models
            if model in self.routes
            for entry in self.routes[model].versions.values()
        )

    def _readdress(self, change: Change) -> None:
        for server in change.removed_servers:
            self.addresses.pop(server, None)
        if change.whole:
            self.addresses = dict(change.addresses)
        else:
            self.addresses.update(change.addresses)

    def _still_unknown(self, change: Change) -> frozenset[str]:
        before = frozenset() if change.whole else self.unknown - change.removed_servers
        return before - change.addresses.keys() | change.unknown_servers

    def _on(self, servers: frozenset[str]) -> set[str]:
        """The models with a replica on one of `servers`."""
        return {
            replica.target.model
            for replica in replicas(self.routes, self.routes if servers else ())
            if replica.server in servers
        }

    def _keeping(self, model: str, route: Route, unknown: frozenset[str]) -> Route:
        """`route` with what the table has of it on servers that are unknown to the Controller."""
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
    """All replicas of `models`."""
    for model in models:
        route = routes.get(model)
        if route is not None:
            for version, entry in route.versions.items():
                for server in entry.servers:
                    yield Replica(server, Target(model, version))
