"""What the catalogue says of a version once it was found on disk."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from services.registry.artifacts.discovery import Found
from services.registry.artifacts.repository import Problem
from services.registry.artifacts.scan import Scan
from services.registry.artifacts.tree import exists
from services.registry.core import resolution, rules
from services.registry.core.catalogue import Entry, Version, VersionState
from services.registry.core.errors import InvalidArtifact

_log = structlog.get_logger(__name__)


def version_of(scan: Scan, number: int) -> Version:
    """Return an approved version with what the scan says of it."""
    return Version(
        model=scan.model,
        number=number,
        verdict=VersionState.APPROVED,
        source=scan.source,
        config=scan.config,
        probe=scan.probe,
        config_digest=scan.config_digest,
        auxiliary_digest=scan.auxiliary_digest,
        artifact_bytes=scan.files.size,
        fingerprint=scan.fingerprint,
        ensemble=scan.ensemble,
        parts=scan.parts,
        artifact_problem=scan.problem,
        incomplete=scan.incomplete,
        scanned=scan.scanned,
    )


def adopt(entry: Entry, found: Found) -> Entry:
    """Return the entry with one version as it was found on disk."""
    known = entry.versions.get(found.number)
    if isinstance(found.scan, InvalidArtifact):
        assert known is not None, found
        version = replace(known, artifact_problem=found.scan.message, fingerprint="")
    else:
        version = rules.adopted(known, version_of(found.scan, found.number))
    if known and known.on_disk and known.on_disk != version.on_disk:
        _log.warning(
            "a registered version was changed on disk",
            version=version.name,
            source=version.source,
            problem=version.artifact_problem or None,
        )
    return entry.with_version(version)


def parts_first(found: Sequence[Found]) -> list[Found]:
    """Return the same versions, each after those that it is made of."""
    parts: dict[str, set[str]] = {}
    for one in found:
        made_of = () if isinstance(one.scan, InvalidArtifact) else one.scan.parts
        parts.setdefault(one.model, set()).update(part.model for part in made_of)
    rank = {model: index for index, model in enumerate(resolution.parts_first(parts))}
    return sorted(found, key=lambda one: (rank[one.model], one.number))


def is_changed(before: Version | None, after: Version) -> bool:
    """Return whether a version is new, or its files or its source are other ones."""
    return before is None or (before.fingerprint, before.artifact_problem, before.source) != (
        after.fingerprint,
        after.artifact_problem,
        after.source,
    )


def untold(
    problems: Iterable[Problem], versions: Iterable[Version], missing: Iterable[Found]
) -> list[Problem]:
    """Return the problems that no version in the catalogue has as its reason.

    `versions` are those that were found, and `missing` those that are registered all the same.
    """
    told = {version.artifact_problem for version in versions}
    told.update(one.scan.message for one in missing if isinstance(one.scan, InvalidArtifact))
    return [
        problem
        for problem in problems
        if InvalidArtifact(path=problem.path, problem=problem.reason).message not in told
    ]


def unloadable(found: Found) -> str:
    """Return why the files of a registered version cannot be loaded as they are now, or ""."""
    if not isinstance(found.scan, InvalidArtifact):
        problem = found.scan.problem
        return f"its files have changed since it was registered: {problem}" if problem else ""
    path, problem = found.scan.metadata["path"], found.scan.metadata["problem"]
    if exists(Path(path)):
        return f"its files have changed since it was registered: {path}: {problem}"
    return f"its source is gone: {path} does not exist"


def is_unchanged(known: Version, found: Found) -> bool:
    """Return whether the files are those that were registered."""
    return isinstance(found.scan, Scan) and found.scan.fingerprint == known.on_disk


def still_answering(entry: Entry | None, found: Sequence[Found]) -> list[Found]:
    """Return what was found of valid versions, if no version can be loaded as it is now."""
    if entry is None or not all(map(unloadable, found)):
        return []
    known = entry.versions
    return [one for one in found if one.number in known and not known[one.number].artifact_problem]
