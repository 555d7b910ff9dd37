"""What exists: models, their versions, aliases and traffic policies, as immutable values.

Two things decide a version's state. People give a verdict: pending, approved or rejected. Its files
and the versions that it is made of say whether it can be served at all. A version that cannot be
served is INVALID until that is fixed, and then has its earlier verdict again. A version whose
config only a server can complete is WAITING until one has. A rejected version stays REJECTED
whatever its files are.

An etag is the catalogue revision at which something last changed, so it never repeats.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from services.common.errors import NoApprovedVersion, VersionNotFound
from services.registry.core.provenance import Provenance
from services.registry.core.residency import Residency
from shoal import names
from shoal.names import ModelVersionName

DEFAULT_ALIAS: Final = "default"


class VersionState(enum.Enum):
    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    INVALID = "invalid"
    WAITING = "waiting"


class Move(enum.Enum):
    """A verdict on a version. The value is the participle for error messages."""

    APPROVE = "approved"
    REJECT = "rejected"


class RetryPolicy(enum.Enum):
    ONCE = "once"
    NEVER = "never"


# All legal moves. Repeating a move changes nothing and is not an error.
MOVES: Final[Mapping[tuple[VersionState, Move], VersionState]] = {
    (VersionState.PENDING, Move.APPROVE): VersionState.APPROVED,
    (VersionState.PENDING, Move.REJECT): VersionState.REJECTED,
    (VersionState.APPROVED, Move.APPROVE): VersionState.APPROVED,
    (VersionState.APPROVED, Move.REJECT): VersionState.REJECTED,
    (VersionState.REJECTED, Move.APPROVE): VersionState.APPROVED,
    (VersionState.REJECTED, Move.REJECT): VersionState.REJECTED,
    (VersionState.INVALID, Move.REJECT): VersionState.REJECTED,
    (VersionState.WAITING, Move.APPROVE): VersionState.APPROVED,
    (VersionState.WAITING, Move.REJECT): VersionState.REJECTED,
}


class PartSource(enum.Enum):
    """How it is known that a version needs another one.

    The config says it, the model's code names it, or a call to it has failed.
    """

    CONFIG = "config"
    CODE = "code"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class Part:
    """A version that another version is made of.

    `written` is what the config or the code says: a number, or 0 for the default version. `chosen`
    is the version that this stands for at present, or 0 while there is none.
    """

    model: str
    written: int
    chosen: int
    source: PartSource = PartSource.CONFIG

    @property
    def learned(self) -> bool:
        """Return whether nobody declared it. It counts while it can be served, and no longer."""
        return self.source is not PartSource.CONFIG


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One set of files and one config.

    `config` is a serialized inference.ModelConfig, and `probe` a serialized ModelInferRequest or
    empty. `fingerprint` changes with the files, the config or the probe on disk. `parts` are in the
    order of the config's steps.

    `incomplete` is why a server must complete the config first, or "". A server that could not is
    the `completion_problem`. Once one has, `scanned` is the fingerprint of what it was given.

    `source` is the folder that its files are read from. `provenance` is where they come from, None
    for a version of a repository that is served in place.
    """

    model: str
    number: int
    verdict: VersionState
    source: str
    config: bytes = b""
    probe: bytes = b""
    config_digest: str = ""
    auxiliary_digest: str = ""
    artifact_bytes: int = 0
    fingerprint: str = ""
    ensemble: bool = False
    parts: tuple[Part, ...] = ()
    declared_memory: Mapping[str, int] = field(default_factory=dict)
    pinned: bool = False
    artifact_problem: str = ""
    parts_problem: str = ""
    parts_waiting: str = ""
    incomplete: str = ""
    completion_problem: str = ""
    scanned: str = ""
    provenance: Provenance | None = None
    created_us: int = 0
    revision: int = 0

    @property
    def name(self) -> str:
        return names.version_name(self.model, self.number)

    @property
    def digest(self) -> str:
        """Return the digest of its manifest in the store, or "" where it is served in place."""
        return self.provenance.digest if self.provenance else ""

    @property
    def problem(self) -> str:
        return self.artifact_problem or self.completion_problem or self.parts_problem

    @property
    def waits_for(self) -> str:
        """Return what it waits for before it can be served, or ""."""
        return "" if self.problem else self.incomplete or self.parts_waiting

    @property
    def state(self) -> VersionState:
        if self.verdict is VersionState.REJECTED:
            return self.verdict
        if self.problem:
            return VersionState.INVALID
        return VersionState.WAITING if self.waits_for else self.verdict

    @property
    def on_disk(self) -> str:
        """Return the fingerprint of what was found on disk, before any server completed it."""
        return self.scanned or self.fingerprint

    @property
    def answers(self) -> bool:
        """Return whether requests that name this version may be answered."""
        return self.state in (VersionState.PENDING, VersionState.APPROVED)

    @property
    def requires(self) -> tuple[ModelVersionName, ...]:
        """Return the chosen parts, each once."""
        chosen = (ModelVersionName(part.model, part.chosen) for part in self.parts if part.chosen)
        return tuple(dict.fromkeys(chosen))


@dataclass(frozen=True, slots=True)
class Target:
    """What an arm points at: a version, an alias, or else the model's default version."""

    model: str
    version: int = 0
    alias: str = ""

    def __str__(self) -> str:
        if self.version:
            return names.version_name(self.model, self.version)
        if self.alias:
            return names.alias_name(self.model, self.alias)
        return names.model_name(self.model)


@dataclass(frozen=True, slots=True)
class Arm:
    target: Target
    weight: int


@dataclass(frozen=True, slots=True)
class TrafficPolicy:
    arms: tuple[Arm, ...]
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    retry_policy: RetryPolicy = RetryPolicy.ONCE
    residency: Residency = field(default_factory=Residency)
    aliases: Mapping[str, int] = field(default_factory=dict)
    policy: TrafficPolicy | None = None
    created_us: int = 0
    updated_us: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A model with all its versions."""

    model: Model
    versions: Mapping[int, Version] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def default_version(self) -> int:
        """Return the version for requests that name none, or 0 when none is approved.

        It is an approved version that waits only while no other can answer.
        """
        approved = {
            number: version.state
            for number, version in self.versions.items()
            if version.verdict is VersionState.APPROVED and not version.problem
        }
        answering = [number for number, state in approved.items() if state is VersionState.APPROVED]
        choice = answering or [*approved]
        aliased = self.model.aliases.get(DEFAULT_ALIAS)
        return aliased if aliased in choice else max(choice, default=0)

    @property
    def numbers(self) -> str:
        """Return the registered versions, for error messages."""
        return ", ".join(map(str, sorted(self.versions))) or "none"

    @property
    def newest(self) -> Version | None:
        """Return the highest version whose config could be read."""
        readable = (number for number, version in self.versions.items() if version.config)
        number = max(readable, default=None)
        return None if number is None else self.versions[number]

    def version(self, number: int) -> Version:
        """Return one version. Raises VersionNotFound."""
        try:
            return self.versions[number]
        except KeyError:
            raise self.not_found(number) from None

    def alias(self, alias: str) -> int:
        """Return the number of the version that an alias names. Raises VersionNotFound."""
        try:
            return self.model.aliases[alias]
        except KeyError:
            raise self.not_found(alias) from None

    def approved_default(self) -> int:
        """Return the default version. Raises NoApprovedVersion."""
        if not self.default_version:
            raise NoApprovedVersion(model=self.name, versions=self.numbers)
        return self.default_version

    def not_found(self, version: object) -> VersionNotFound:
        return VersionNotFound(model=self.name, version=version, versions=self.numbers)

    def with_version(self, version: Version) -> "Entry":
        return replace(self, versions={**self.versions, version.number: version})

    def with_policy(self, policy: TrafficPolicy | None) -> "Entry":
        return replace(self, model=replace(self.model, policy=policy))
