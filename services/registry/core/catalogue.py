"""What exists: models, their versions, aliases and traffic policies, as immutable values.

Two things decide a version's state. People give a verdict (pending, approved, rejected); its files
and the versions it is made of say whether it can be served at all. A version that cannot be served
is INVALID until that is mended, and then has the verdict it had before; a rejected one stays
REJECTED whatever its files are.

An etag is the catalogue revision at which something changed last, so it never repeats.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from services.common.errors import NoApprovedVersion, VersionNotFound
from services.registry.core.errors import AlreadyExists, EtagMismatch, IllegalState
from services.registry.core.residency import Residency
from shoal import names
from shoal.names import ModelVersionName

DEFAULT_ALIAS: Final = "default"


class VersionState(enum.Enum):
    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    INVALID = "invalid"


class Move(enum.Enum):
    """The value is the participle that an error message wants."""

    APPROVE = "approved"
    REJECT = "rejected"


class RetryPolicy(enum.Enum):
    ONCE = "once"
    NEVER = "never"


# What is not here is illegal. Repeating a move changes nothing and is no error.
MOVES: Final[Mapping[tuple[VersionState, Move], VersionState]] = {
    (VersionState.PENDING, Move.APPROVE): VersionState.APPROVED,
    (VersionState.PENDING, Move.REJECT): VersionState.REJECTED,
    (VersionState.APPROVED, Move.APPROVE): VersionState.APPROVED,
    (VersionState.APPROVED, Move.REJECT): VersionState.REJECTED,
    (VersionState.REJECTED, Move.APPROVE): VersionState.APPROVED,
    (VersionState.REJECTED, Move.REJECT): VersionState.REJECTED,
    (VersionState.INVALID, Move.REJECT): VersionState.REJECTED,
}


@dataclass(frozen=True, slots=True)
class Part:
    """A version that another one is made of.

    `written` is what its config says: a number, or 0 for whichever is the default. `chosen` is
    what that stands for now; 0 while nothing does.
    """

    model: str
    written: int
    chosen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One set of files and one config.

    `config` is a serialized inference.ModelConfig, `probe` a ModelInferRequest or empty.
    `fingerprint` tells whether the files, the config or the probe on disk are still those
    registered. `parts` stand in the order of the config's steps.
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
    created_us: int = 0
    revision: int = 0

    @property
    def name(self) -> str:
        return names.version_name(self.model, self.number)

    @property
    def problem(self) -> str:
        return self.artifact_problem or self.parts_problem

    @property
    def state(self) -> VersionState:
        if self.problem and self.verdict is not VersionState.REJECTED:
            return VersionState.INVALID
        return self.verdict

    @property
    def answers(self) -> bool:
        """Whether it may be served to those who name it."""
        return self.state in (VersionState.PENDING, VersionState.APPROVED)

    @property
    def requires(self) -> tuple[ModelVersionName, ...]:
        """The chosen parts, each once."""
        chosen = (ModelVersionName(part.model, part.chosen) for part in self.parts if part.chosen)
        return tuple(dict.fromkeys(chosen))


@dataclass(frozen=True, slots=True)
class Target:
    """What an arm points at: a version, an alias, or with neither the model's default version."""

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
        """Answered when no version is asked for; 0 when none is approved."""
        approved = {
            number
            for number, version in self.versions.items()
            if version.state is VersionState.APPROVED
        }
        aliased = self.model.aliases.get(DEFAULT_ALIAS)
        return aliased if aliased in approved else max(approved, default=0)

    @property
    def numbers(self) -> str:
        """The registered versions, in words."""
        return ", ".join(map(str, sorted(self.versions))) or "none"

    @property
    def newest(self) -> Version | None:
        """The highest version whose config could be read."""
        readable = (number for number, version in self.versions.items() if version.config)
        number = max(readable, default=None)
        return None if number is None else self.versions[number]

    def version(self, number: int) -> Version:
        """Raises VersionNotFound."""
        try:
            return self.versions[number]
        except KeyError:
            raise self.not_found(number) from None

    def alias(self, alias: str) -> int:
        """The version it names. Raises VersionNotFound."""
        try:
            return self.model.aliases[alias]
        except KeyError:
            raise self.not_found(alias) from None

    def approved_default(self) -> int:
        """The default version. Raises NoApprovedVersion."""
        if not self.default_version:
            raise NoApprovedVersion(model=self.name, versions=self.numbers)
        return self.default_version

    def not_found(self, version: object) -> VersionNotFound:
        return VersionNotFound(model=self.name, version=version, versions=self.numbers)

    def with_version(self, version: Version) -> "Entry":
        return replace(self, versions={**self.versions, version.number: version})

    def with_policy(self, policy: TrafficPolicy | None) -> "Entry":
        return replace(self, model=replace(self.model, policy=policy))


def etag(revision: int) -> str:
    return f"r{revision}"


def check_etag(name: str, given: str, revision: int) -> None:
    """No etag matches anything. Raises EtagMismatch."""
    if given and given != etag(revision):
        raise EtagMismatch(name=name, given=given, current=etag(revision))


def check_policy_etag(entry: Entry, given: str) -> None:
    """Raises EtagMismatch, also when the policy that the etag came from is gone."""
    policy = entry.model.policy
    check_etag(names.policy_name(entry.name), given, policy.revision if policy else 0)


def decide(version: Version, move: Move) -> Version:
    """The version after a verdict. Raises IllegalState."""
    verdict = MOVES.get((version.state, move))
    if verdict is None or (verdict is VersionState.APPROVED and version.problem):
        raise IllegalState(
            name=version.name,
            state=version.state.value,
            move=move.value,
            hint=f"{version.problem}. Mend that and register or import it again",
        )
    return replace(version, verdict=verdict)


def next_number(entry: Entry | None) -> int:
    return max(entry.versions, default=0) + 1 if entry else 1


def check_registrable(entry: Entry | None, number: int) -> None:
    """A number is given once; only what cannot be served anyway may be replaced.

    Raises AlreadyExists.
    """
    known = entry.versions.get(number) if entry else None
    if known is not None and known.state is not VersionState.INVALID:
        raise AlreadyExists(
            name=known.name,
            hint="register the files under another number; importing the repository again takes "
            "over files that were changed in place",
        )


def adopted(known: Version | None, found: Version) -> Version:
    """The version after its files were looked at again: what people decided about it stays.

    A part that was chosen for it stays chosen as well.
    """
    if known is None or known.fingerprint == found.fingerprint:
        return found if known is None else replace(known, source=found.source)
    chosen = {part.model: part.chosen for part in known.parts if not part.written}
    parts = tuple(
        part if part.written else replace(part, chosen=chosen.get(part.model, 0))
        for part in found.parts
    )
    return replace(
        found,
        verdict=known.verdict,
        parts=parts,
        declared_memory=known.declared_memory,
        pinned=known.pinned,
        created_us=known.created_us,
        revision=known.revision,
    )


def set_alias(entry: Entry, alias: str, number: int) -> Entry:
    """Raises VersionNotFound, and IllegalState for a version that does not answer."""
    version = entry.version(number)
    if not version.answers:
        raise IllegalState(
            name=version.name,
            state=version.state.value,
            move="given an alias",
            hint="name a version that answers",
        )
    aliases = {**entry.model.aliases, alias: number}
    return replace(entry, model=replace(entry.model, aliases=aliases))


def drop_alias(entry: Entry, alias: str, users: Iterable[Entry]) -> Entry:
    """`users`: the models that may point at this one. Raises VersionNotFound, IllegalState."""
    entry.alias(alias)
    name = names.alias_name(entry.name, alias)
    _check_unused(name, policies_naming(Target(entry.name, alias=alias), users))
    aliases = {key: number for key, number in entry.model.aliases.items() if key != alias}
    return replace(entry, model=replace(entry.model, aliases=aliases))


def drop_version(entry: Entry, number: int, users: Iterable[Entry]) -> Entry:
    """`users`: the models that may point at this one. Raises VersionNotFound, IllegalState."""
    version = entry.version(number)
    users = [entry, *(user for user in users if user.name != entry.name)]
    reasons = [
        *(f"alias {key!r} names it" for key, at in entry.model.aliases.items() if at == number),
        *policies_naming(Target(entry.name, version=number), users),
        *versions_requiring(entry.name, number, users),
    ]
    _check_unused(version.name, reasons)
    return replace(
        entry, versions={key: one for key, one in entry.versions.items() if key != number}
    )


def check_removable(entry: Entry, users: Iterable[Entry]) -> None:
    """Whether the model may go. `users` as for drop_version. Raises IllegalState."""
    others = [user for user in users if user.name != entry.name]
    reasons = [*policies_naming(entry.name, others), *versions_requiring(entry.name, 0, others)]
    _check_unused(names.model_name(entry.name), reasons)


def policies_naming(what: Target | str, users: Iterable[Entry]) -> Iterator[str]:
    """In words: whose policy has an arm for exactly this target, or for any of a model's."""
    for user in users:
        arms = user.model.policy.arms if user.model.policy else ()
        if any(what in (arm.target, arm.target.model) for arm in arms):
            yield f"the traffic policy of model {user.name!r} names it"


def versions_requiring(model: str, number: int, users: Iterable[Entry]) -> Iterator[str]:
    """In words: which versions are made of this one, or with 0 of any of the model's."""
    for user in users:
        for version in user.versions.values():
            if any(one.model == model and number in (0, one.version) for one in version.requires):
                yield f"{version.name} requires it"


def _check_unused(name: str, reasons: Iterable[str]) -> None:
    if text := "; ".join(reasons):
        raise IllegalState(
            name=name, state="in use", move="deleted", hint=f"{text}. Change that first"
        )


def stamped(before: Entry | None, after: Entry, revision: int, now_us: int) -> Entry:
    """`after`, with this revision and time on what differs from `before`, old ones elsewhere."""
    policy = after.model.policy
    if policy is not None:
        known = before.model.policy if before else None
        same = known is not None and known.arms == policy.arms
        policy = known if same else replace(policy, revision=revision)
    model = replace(after.model, policy=policy)
    if before is None:
        model = replace(model, created_us=now_us, updated_us=now_us, revision=revision)
    elif model != before.model:
        model = replace(model, updated_us=now_us, revision=revision)
    versions = {
        number: _stamped_version(
            before.versions.get(number) if before else None, version, revision, now_us
        )
        for number, version in sorted(after.versions.items())
    }
    return Entry(model, versions)


def _stamped_version(before: Version | None, after: Version, revision: int, now_us: int) -> Version:
    if before is None:
        return replace(after, created_us=now_us, revision=revision)
    if replace(after, created_us=before.created_us, revision=before.revision) == before:
        return before
    return replace(after, created_us=before.created_us, revision=revision)
