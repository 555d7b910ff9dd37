"""The Registry's catalogue as the Controller holds it, and the specs that the engine gets."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.duration_pb2 import Duration

from services.controller.core.entities import Unit, UnitSpec
from services.controller.core.events import Failing
from services.controller.core.memory import Memory
from services.controller.triton.config import serving
from shoal.names import parse_model_name, parse_version_name
from shoal.registry.v1 import types_pb2 as registry

INVALID = registry.VERSION_STATE_INVALID
WAITING = registry.VERSION_STATE_WAITING
LONGEST_SECONDS: Final = 3600.0  # that a failure is recalled for: clocks of hosts may differ
ANSWERABLE = frozenset({registry.VERSION_STATE_APPROVED, registry.VERSION_STATE_PENDING})


@dataclass
class LearnedFootprint:
    """A footprint that the Registry keeps.

    It counts only for the config and the fingerprint that it was learned with. An empty fingerprint
    is not known, and any counts.
    """

    config_digest: str
    memory: Memory
    load_seconds: float | None
    fingerprint: str = ""

    def is_of(self, version: registry.ModelVersion) -> bool:
        return self.config_digest == version.config_digest and self.fingerprint in (
            "",
            version.fingerprint,
        )


@dataclass(frozen=True, slots=True)
class Defaults:
    """The settings of models that ask for nothing themselves.

    `preload`, `pinned`: "model" for its default version, or "model:version".
    """

    min_copies: int = 0
    preload: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()


@dataclass
class Catalogue:
    """The models that exist, and what was learned of them.

    `entries`: by model name. `learned`: by unit, unregistered ones included. `used`: by unit, its
    faded uses as of the last one, in seconds since the epoch, as the Registry kept them. `gone`:
    units that are no longer registered, and may still be resident. `failed`: by unit, what the
    Registry kept of the failure of its last load.
    """

    defaults: Defaults = field(default_factory=Defaults)
    entries: dict[str, registry.CatalogEntry] = field(default_factory=dict)
    learned: dict[Unit, LearnedFootprint] = field(default_factory=dict)
    used: dict[Unit, tuple[float, float]] = field(default_factory=dict)
    gone: set[Unit] = field(default_factory=set)
    failed: dict[Unit, registry.Footprint] = field(default_factory=dict)

    def replace(
        self, entries: Iterable[registry.CatalogEntry], removed: Iterable[str], *, all_: bool
    ) -> frozenset[str]:
        """Take in a change, or with `all_` a whole catalogue; return the models that changed."""
        fresh = {model_of(entry): entry for entry in entries}
        gone = {name for name in map(parse_model_name, removed) if name is not None}
        if all_:
            gone |= self.entries.keys() - fresh.keys()
        changed = {model for model, entry in fresh.items() if self.entries.get(model) != entry}
        before = self._units(changed | gone)
        for model in gone:
            self.entries.pop(model, None)
        self.entries.update(fresh)
        if before or self.gone:
            registered = self._units(changed)
            for unit in before - registered:
                self.learned.pop(unit, None)
            self.gone = (self.gone | before) - registered
        return frozenset(changed | gone)

    def has_leftovers(self, is_resident: Callable[[Unit], bool]) -> bool:
        """Return whether any unit that is no longer registered is still resident.

        Those that are not are forgotten.
        """
        self.gone = {unit for unit in self.gone if is_resident(unit)}
        return bool(self.gone)

    def _units(self, models: Iterable[str]) -> set[Unit]:
        entries = (self.entries[model] for model in models if model in self.entries)
        return {unit_of(version) for entry in entries for version in entry.versions}

    def learn(self, footprint: registry.Footprint) -> None:
        """Take in a footprint that the Registry keeps."""
        name = parse_version_name(footprint.version)
        if name is not None:
            seconds = footprint.load_duration.ToTimedelta().total_seconds()
            self.learned[Unit(*name)] = LearnedFootprint(
                footprint.config_digest,
                dict(footprint.memory),
                seconds or None,
                footprint.fingerprint,
            )
            if footprint.HasField("last_use_time"):
                at = footprint.last_use_time.ToNanoseconds() / 1e9
                self.used[Unit(*name)] = (footprint.uses, at)
            if footprint.failure.cause:
                self.failed[Unit(*name)] = footprint

    def take_used(self, now: float) -> dict[Unit, tuple[float, float]]:
        """Return faded uses and seconds since the last one, by unit, as of `now` in seconds since
        the epoch. Whoever takes them keeps them from here on."""
        used, self.used = self.used, {}
        return {unit: (uses, max(0.0, now - at)) for unit, (uses, at) in used.items()}

    def take_failed(self, now: float) -> dict[Unit, Failing]:
        """Return the failures of loads that the Registry kept, as of `now` in seconds since the
        epoch, without those of other files or configs. Whoever takes them keeps them from here
        on."""
        failed, self.failed = self.failed, {}
        return {
            unit: _failing(footprint.failure, now)
            for unit, footprint in failed.items()
            if (version := self.version(unit)) is not None and _is_of(footprint, version)
        }

    def version(self, unit: Unit) -> registry.ModelVersion | None:
        """Return what the Registry says of the unit; None where it is not registered."""
        entry = self.entries.get(unit.model)
        for version in entry.versions if entry is not None else ():
            if unit_of(version) == unit:
                return version
        return None

    def specs(self, models: Iterable[str]) -> tuple[UnitSpec, ...]:
        """Return what the engine may load of these models."""
        return tuple(
            self._spec(self.entries[model].model, version)
            for model in sorted(models)
            if model in self.entries
            for version in self.entries[model].versions
            if version.state in ANSWERABLE or _incomplete(version)
        )

    def _spec(self, model: registry.Model, version: registry.ModelVersion) -> UnitSpec:
        unit = unit_of(version)
        if _incomplete(version):
            return UnitSpec(
                unit=unit,
                config_digest=version.config_digest,
                fingerprint=version.fingerprint,
                artifact_bytes=version.artifact_bytes,
                instances=serving(version.config).instances,
                declared=dict(version.declared_memory),
                incomplete=True,
                max_copies=1,
                priority=model.residency.priority,
                required_labels=dict(model.residency.required_labels),
            )
        asked, default = model.residency, unit.version == model.default_version
        names = {str(unit), unit.model} if default else {str(unit)}
        copies = asked.min_copies if asked.HasField("min_copies") else self.defaults.min_copies
        preload = (
            asked.preload if asked.HasField("preload") else bool(names & self.defaults.preload)
        )
        learned = self.learned.get(unit)
        if learned is not None and not learned.is_of(version):
            learned = None
        runs = serving(version.config)
        return UnitSpec(
            unit=unit,
            config_digest=version.config_digest,
            fingerprint=version.fingerprint,
            artifact_bytes=version.artifact_bytes,
            instances=runs.instances,
            batching=runs.batching,
            declared=dict(version.declared_memory),
            learned=learned.memory if learned is not None else {},
            load_seconds=learned.load_seconds if learned is not None else None,
            requires=tuple(
                Unit(*name)
                for name in map(parse_version_name, version.requires)
                if name is not None
            ),
            unversioned=frozenset(
                Unit(*name)
                for name in (
                    parse_version_name(one.version)
                    for one in version.requirements
                    if one.unversioned
                )
                if name is not None
            ),
            ensemble=version.ensemble,
            pinned=version.pinned or bool(names & self.defaults.pinned),
            min_copies=copies if default else 0,
            max_copies=_max_copies(asked, version),
            idle_ttl=_seconds(asked.idle_ttl) if asked.HasField("idle_ttl") else None,
            preload=preload and (default or str(unit) in self.defaults.preload),
            priority=asked.priority,
            required_labels=dict(asked.required_labels),
        )


def _is_of(footprint: registry.Footprint, version: registry.ModelVersion) -> bool:
    """Return whether a footprint was learned with the version's present config and files."""
    fingerprints = ("", version.fingerprint)
    same_config = footprint.config_digest == version.config_digest
    return same_config and footprint.fingerprint in fingerprints


def _failing(failure: registry.LoadFailure, now: float) -> Failing:
    wait = min(failure.retry_time.ToMicroseconds() / 1e6 - now, LONGEST_SECONDS)
    return Failing(failure.server, failure.cause, failure.count, failure.set_aside, wait)


def _incomplete(version: registry.ModelVersion) -> bool:
    """Return whether a server is to complete the version's own config."""
    return version.state == WAITING and not version.ensemble


def _max_copies(asked: registry.Residency, version: registry.ModelVersion) -> int | None:
    if asked.HasField("max_copies"):
        return asked.max_copies
    # The requests of a sequence come by any Router, and all must find the one replica it is on.
    return max(1, asked.min_copies) if version.stateful else None


def _seconds(duration: Duration) -> float:
    return float(duration.ToNanoseconds() / 1e9)


def model_of(entry: registry.CatalogEntry) -> str:
    model = parse_model_name(entry.model.name)
    assert model is not None, f"the Registry sent a bad name: {entry.model.name!r}"
    return model


def unit_of(version: registry.ModelVersion) -> Unit:
    name = parse_version_name(version.name)
    assert name is not None, f"the Registry sent a bad name: {version.name!r}"
    return Unit(*name)
