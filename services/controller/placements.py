"""The placement table as Routers are told of it: snapshots, then what changed."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Final

from services.controller.catalog import ANSWERABLE, Catalog, unit_of
from services.controller.core.entities import Health, Unit
from services.controller.core.fleet import Fleet
from shoal.controller.v1 import placement_pb2 as wire
from shoal.controller.v1 import types_pb2
from shoal.names import parse_alias_name, parse_model_name, parse_version_name
from shoal.registry.v1 import types_pb2 as registry

SERVER_STATES: Final = {
    Health.UNKNOWN: types_pb2.SERVER_STATE_UNKNOWN,
    Health.HEALTHY: types_pb2.SERVER_STATE_HEALTHY,
    Health.UNREACHABLE: types_pb2.SERVER_STATE_UNREACHABLE,
    Health.UNUSABLE: types_pb2.SERVER_STATE_UNUSABLE,
}


class Subscriber:
    """One Router's stream: what it has not been told yet. Changes that come faster than the Router
    reads are told once, as they are then."""

    def __init__(self, snapshot: bool = True) -> None:
        self.snapshot = snapshot
        self.first = True
        self.models: set[str] = set()
        self.servers: set[str] = set()
        self.changed = asyncio.Event()
        self.changed.set()

    def mark(self, models: Iterable[str], servers: Iterable[str]) -> None:
        self.models.update(models)
        self.servers.update(servers)
        self.changed.set()

    def restart(self) -> None:
        """Tell everything anew."""
        self.snapshot = True
        self.changed.set()


class Placements:
    """`epoch`: of this Controller process; revisions count within it."""

    def __init__(self, fleet: Fleet, catalog: Catalog, epoch: int) -> None:
        self._fleet = fleet
        self._catalog = catalog
        self.epoch = epoch
        self._subscribers: set[Subscriber] = set()
        self._models_at: dict[str, int] = {}
        self._servers_at: dict[str, int] = {}

    def subscribe(self, known: wire.Revision) -> Subscriber:
        """For a Router that holds the table of `known`: what has changed since. Everything, where
        that was another epoch."""
        resumes = self.current(known)
        subscriber = Subscriber(snapshot=not resumes)
        if resumes:
            subscriber.mark(_since(self._models_at, known), _since(self._servers_at, known))
        self._subscribers.add(subscriber)
        return subscriber

    def current(self, revision: wire.Revision) -> bool:
        """Whether it is one of this Controller's."""
        return revision.epoch == self.epoch

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.discard(subscriber)

    def mark(self, models: Iterable[str], servers: Iterable[str]) -> None:
        revision = self._fleet.revision
        self._models_at.update(dict.fromkeys(models, revision))
        self._servers_at.update(dict.fromkeys(servers, revision))
        for subscriber in self._subscribers:
            subscriber.mark(models, servers)

    def revision(self) -> wire.Revision:
        return wire.Revision(epoch=self.epoch, number=self._fleet.revision)

    def next_message(self, subscriber: Subscriber) -> wire.WatchPlacementsResponse:
        """What the subscriber lacks, as of now; a checkpoint when it lacks nothing."""
        unregistered = self._catalog.leftover(self._fleet.where) or bool(self._fleet.strangers)
        message = wire.WatchPlacementsResponse(
            revision=self.revision(), unregistered_resident=unregistered
        )
        if subscriber.snapshot:
            message.snapshot.servers.extend(self._endpoint(s) for s in self._fleet.servers)
            message.snapshot.models.extend(self._route(model) for model in self._catalog.entries)
        elif subscriber.models or subscriber.servers or subscriber.first:
            message.delta.SetInParent()  # a Router acks what it applies, be it nothing
            delta = message.delta
            delta.servers.extend(self._endpoint(server) for server in sorted(subscriber.servers))
            for model in sorted(subscriber.models):
                if model in self._catalog.entries:
                    delta.models.append(self._route(model))
                else:
                    delta.removed_models.append(model)
        else:
            message.checkpoint.SetInParent()
        subscriber.snapshot = subscriber.first = False
        subscriber.models.clear()
        subscriber.servers.clear()
        subscriber.changed.clear()
        return message

    def _endpoint(self, id_: str) -> wire.ServerEndpoint:
        server = self._fleet.servers[id_]
        return wire.ServerEndpoint(
            server=server.id, address=server.address, state=SERVER_STATES[server.health]
        )

    def _route(self, model: str) -> wire.ModelRoute:
        entry = self._catalog.entries[model]
        return wire.ModelRoute(
            model=model,
            default_version=entry.model.default_version,
            aliases=entry.model.aliases,
            versions=[self._version(version) for version in entry.versions],
            arms=[self._arm(arm) for arm in entry.model.traffic_policy.arms],
            retry_policy=entry.model.retry_policy,
        )

    def _version(self, version: registry.ModelVersion) -> wire.VersionRoute:
        unit = unit_of(version)
        answerable = version.state in ANSWERABLE
        ready = self._fleet.ready(unit) if answerable else []
        return wire.VersionRoute(
            version=unit.version,
            config_digest=version.config_digest,
            servers=[replica.key.server for replica in ready],
            reason=self._fleet.status(unit) if answerable else _refusal(version),
            servable=answerable and (bool(ready) or not self._failed(unit)),
            decoupled=version.decoupled if version.HasField("decoupled") else None,
        )

    def _failed(self, unit: Unit) -> bool:
        """Whether it failed to load and is not tried again yet."""
        failure = self._fleet.failures.by_unit.get(unit)
        return failure is not None and failure.until > time.monotonic()

    def _arm(self, arm: registry.Arm) -> wire.ArmRoute:
        version = parse_version_name(arm.target)
        if version is not None:
            return wire.ArmRoute(model=version.model, version=version.version, weight=arm.weight)
        alias = parse_alias_name(arm.target)
        if alias is not None:
            model, name = alias
            aliases = (
                self._catalog.entries[model].model.aliases if model in self._catalog.entries else {}
            )
            return wire.ArmRoute(model=model, version=aliases.get(name, 0), weight=arm.weight)
        return wire.ArmRoute(model=parse_model_name(arm.target) or "", weight=arm.weight)


def _since(changed_at: Mapping[str, int], known: wire.Revision) -> list[str]:
    return [name for name, revision in changed_at.items() if revision > known.number]


def _refusal(version: registry.ModelVersion) -> str:
    state = registry.VersionState.Name(version.state).removeprefix("VERSION_STATE_").lower()
    return f"{state}: {version.invalid_reason}" if version.invalid_reason else state
