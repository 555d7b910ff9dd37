"""Which changes of the catalogue are allowed, and what each makes of an entry."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from services.common.errors import InvalidField
from services.registry.core.catalogue import (
    MOVES,
    Entry,
    Move,
    Part,
    PartSource,
    Target,
    Version,
    VersionState,
)
from services.registry.core.errors import AlreadyExists, EtagMismatch, IllegalState
from shoal import names

MAX_CALLED: Final = 16  # models that one version is seen to call


def etag(revision: int) -> str:
    return f"r{revision}"


def check_etag(name: str, given: str, revision: int) -> None:
    """Raises EtagMismatch unless the given etag is the current one, or none is given."""
    if given and given != etag(revision):
        raise EtagMismatch(name=name, given=given, current=etag(revision))


def check_policy_etag(entry: Entry, given: str) -> None:
    """Raises EtagMismatch, also when the policy that the etag belonged to is gone."""
    policy = entry.model.policy
    check_etag(names.policy_name(entry.name), given, policy.revision if policy else 0)


def decide(version: Version, move: Move) -> Version:
    """Return the version after a verdict. Raises IllegalState."""
    verdict = MOVES.get((version.state, move))
    if verdict is None or (verdict is VersionState.APPROVED and version.problem):
        raise IllegalState(
            name=version.name,
            state=version.state.value,
            move=move.value,
            hint=f"{version.problem}. Fix that, then register or import it again",
        )
    return replace(version, verdict=verdict)


def next_number(entry: Entry | None) -> int:
    """Return the lowest number above all registered versions."""
    return max(entry.versions, default=0) + 1 if entry else 1


def check_registrable(entry: Entry | None, number: int) -> None:
    """Raises AlreadyExists, unless the number is free or its version is INVALID."""
    known = entry.versions.get(number) if entry else None
    if known is not None and known.state is not VersionState.INVALID:
        raise AlreadyExists(
            name=known.name,
            hint="register the files under another number. To take over files that were changed in "
            "place, import the repository again",
        )


def adopted(known: Version | None, found: Version) -> Version:
    """Return the version as it was found on disk, with what people decided about it.

    Parts that were chosen for it stay chosen. Parts that were learned from calls are forgotten with
    the files that made the calls.
    """
    if known is None:
        return found
    if known.on_disk == found.fingerprint:
        missing = [part for part in found.parts if part.learned and not _has(known, part.model)]
        return replace(known, source=found.source, parts=(*known.parts, *missing))
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
        provenance=known.provenance,
        created_us=known.created_us,
        revision=known.revision,
    )


def with_calls(version: Version, models: Iterable[str]) -> Version:
    """Return the version with the models that it was seen to call as parts.

    Raises InvalidField if there are more than MAX_CALLED, because they all have to fit one server.
    """
    fresh = [model for model in models if model != version.model and not _has(version, model)]
    called = tuple(Part(model, 0, 0, PartSource.CALL) for model in dict.fromkeys(fresh))
    known = sum(part.source is PartSource.CALL for part in version.parts)
    if called and known + len(called) > MAX_CALLED:
        raise InvalidField(
            field="models",
            problem=f"{version.name} calls more than {MAX_CALLED} models that neither its code nor "
            "its config names",
        )
    return replace(version, parts=(*version.parts, *called))


def _has(version: Version, model: str) -> bool:
    return any(part.model == model for part in version.parts)


def set_alias(entry: Entry, alias: str, number: int) -> Entry:
    """Return the entry with an alias for a version.

    Raises VersionNotFound, and IllegalState for a version that may not be served.
    """
    version = entry.version(number)
    if not version.answers:
        raise IllegalState(
            name=version.name,
            state=version.state.value,
            move="given an alias",
            hint="name one that is pending or approved",
        )
    aliases = {**entry.model.aliases, alias: number}
    return replace(entry, model=replace(entry.model, aliases=aliases))


def drop_alias(entry: Entry, alias: str, users: Iterable[Entry]) -> Entry:
    """Return the entry without an alias. `users` are the models that may point at this one.

    Raises VersionNotFound, IllegalState.
    """
    entry.alias(alias)
    name = names.alias_name(entry.name, alias)
    _check_unused(name, policies_naming(Target(entry.name, alias=alias), users))
    aliases = {key: number for key, number in entry.model.aliases.items() if key != alias}
    return replace(entry, model=replace(entry.model, aliases=aliases))


def drop_version(entry: Entry, number: int, users: Iterable[Entry]) -> Entry:
    """Return the entry without a version. `users` are the models that may point at this one.

    Raises VersionNotFound, IllegalState.
    """
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
    """Raises IllegalState if one of `users`, the models that may point at this one, needs it."""
    others = [user for user in users if user.name != entry.name]
    reasons = [*policies_naming(entry.name, others), *versions_requiring(entry.name, 0, others)]
    _check_unused(names.model_name(entry.name), reasons)


def policies_naming(what: Target | str, users: Iterable[Entry]) -> Iterator[str]:
    """Yield, in words, whose policy has an arm for this target, or for any target of a model."""
    for user in users:
        arms = user.model.policy.arms if user.model.policy else ()
        if any(what in (arm.target, arm.target.model) for arm in arms):
            yield f"the traffic policy of model {user.name!r} names it"


def versions_requiring(model: str, number: int, users: Iterable[Entry]) -> Iterator[str]:
    """Yield, in words, which versions are made of this one; 0 stands for any of the model's."""
    for user in users:
        for version in user.versions.values():
            if any(
                part.model == model and part.chosen and number in (0, part.chosen)
                for part in version.parts
                if not part.learned
            ):
                yield f"{version.name} requires it"


def _check_unused(name: str, reasons: Iterable[str]) -> None:
    if text := "; ".join(reasons):
        raise IllegalState(
            name=name, state="in use", move="deleted", hint=f"{text}. Change that first"
        )


def stamped(before: Entry | None, after: Entry, revision: int, now_us: int) -> Entry:
    """Return `after` with this revision and time on all that differs from `before`."""
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
