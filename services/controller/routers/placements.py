"""The placement table as Routers hear of it: a snapshot first, then what changes."""

import asyncio
import time
from collections.abc import Iterable, Mapping

from services.controller.core.view import FleetView
from services.controller.registry.catalogue import ANSWERABLE, INVALID, Catalogue, unit_of
from services.controller.routers.messages import SERVER_STATES
from shoal.controller.v1 import placement_pb2 as wire
from shoal.names import parse_alias_name, parse_model_name, parse_version_name
from shoal.registry.v1 import types_pb2 as registry


class Subscriber:
    """The changes that one Router has not been told yet.

    Changes that come faster than the Router reads are told once, in their latest state.
    """

    def __init__(self, snapshot: bool = True) -> None:
        self.snapshot = snapshot
        self.first = True
        self.models: set[str] = set()
        self.servers: set[str] = set()
        self.changed = asyncio.Event()
        self.changed.set()

    def mark(self, models: Iterable[str], servers: Iterable[str]) -> None:
        """Note what has changed."""
        self.models.update(models)
        self.servers.update(servers)
        self.changed.set()

    def restart(self) -> None:
        """Have everything told anew."""
        self.snapshot = True
        self.changed.set()


class Placements:
    """The table, and the Routers that follow it.

    `epoch`: of the Controller that acts. Revisions are counted within it. `http_addresses`: those
    of servers that have one for Routers.
    """

    def __init__(
        self,
        view: FleetView,
        catalogue: Catalogue,
        epoch: int,
        http_addresses: Mapping[str, str] | None = None,
    ) -> None:
        self._view = view
        self._catalogue = catalogue
        self.epoch = epoch
        self._http_addresses = http_addresses or {}
        self._subscribers: set[Subscriber] = set()
        self._models_at: dict[str, int] = {}
        self._servers_at: dict[str, int] = {}

    def subscribe(self, known: wire.Revision) -> Subscriber:
        """Follow the table for a Router that holds it as of revision `known`.

        The Router is told what has changed since, or everything where that was another epoch.
        """
        resumes = known.epoch == self.epoch
        subscriber = Subscriber(snapshot=not resumes)
        if resumes:
            subscriber.mark(_since(self._models_at, known), _since(self._servers_at, known))
        self._subscribers.add(subscriber)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.discard(subscriber)

    def mark(self, models: Iterable[str], servers: Iterable[str]) -> None:
        """Note that the placements of `models`, or `servers`, have changed with this revision."""
        revision = self._view.revision
        self._models_at.update(dict.fromkeys(models, revision))
        self._servers_at.update(dict.fromkeys(servers, revision))
        for subscriber in self._subscribers:
            subscriber.mark(models, servers)

    def revision(self) -> wire.Revision:
        return wire.Revision(epoch=self.epoch, number=self._view.revision)

    def next_message(self, subscriber: Subscriber) -> wire.WatchPlacementsResponse:
        """Return what the subscriber lacks; a checkpoint when it lacks nothing."""
        unregistered = (
            self._catalogue.has_leftovers(self._view.is_resident) or self._view.has_strangers()
        )
        message = wire.WatchPlacementsResponse(
            revision=self.revision(), unregistered_resident=unregistered
        )
        if subscriber.snapshot:
            message.snapshot.servers.extend(self._endpoint(s) for s in self._view.servers)
            message.snapshot.models.extend(self._route(model) for model in self._catalogue.entries)
        elif subscriber.models or subscriber.servers or subscriber.first:
            message.delta.SetInParent()  # even if empty: a Router acks what it applies
            delta = message.delta
            delta.servers.extend(self._endpoint(server) for server in sorted(subscriber.servers))
            for model in sorted(subscriber.models):
                if model in self._catalogue.entries:
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
        server = self._view.servers[id_]
        return wire.ServerEndpoint(
            server=server.id,
            address=server.address,
            state=SERVER_STATES[server.health],
            http_address=self._http_addresses.get(id_, ""),
        )

    def _route(self, model: str) -> wire.ModelRoute:
        entry = self._catalogue.entries[model]
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
        ready = self._view.ready(unit) if answerable else []
        failure = self._view.failure(unit, time.monotonic()) if not ready else ""
        status = failure or self._view.status(unit)
        return wire.VersionRoute(
            version=unit.version,
            config_digest=version.config_digest,
            servers=[replica.key.server for replica in ready],
            reason=status if answerable else _refusal(version),
            servable=answerable and not failure,
            decoupled=version.decoupled if version.HasField("decoupled") else None,
            fingerprint=version.fingerprint,
            problem=version.invalid_reason if version.state == INVALID else "",
        )

    def _arm(self, arm: registry.Arm) -> wire.ArmRoute:
        version = parse_version_name(arm.target)
        if version is not None:
            return wire.ArmRoute(model=version.model, version=version.version, weight=arm.weight)
        alias = parse_alias_name(arm.target)
        if alias is not None:
            model, name = alias
            entry = self._catalogue.entries.get(model)
            aliases = entry.model.aliases if entry is not None else {}
            return wire.ArmRoute(model=model, version=aliases.get(name, 0), weight=arm.weight)
        return wire.ArmRoute(model=parse_model_name(arm.target) or "", weight=arm.weight)


def _since(changed_at: Mapping[str, int], known: wire.Revision) -> list[str]:
    return [name for name, revision in changed_at.items() if revision > known.number]


def _refusal(version: registry.ModelVersion) -> str:
    state = registry.VersionState.Name(version.state).removeprefix("VERSION_STATE_").lower()
    reason = version.invalid_reason or version.waiting_reason
    return f"{state}: {reason}" if reason else state
