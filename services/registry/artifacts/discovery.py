"""What is on disk, version by version: in a repository, or of what is already registered."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import structlog

from services.registry.artifacts.repository import Problem
from services.registry.artifacts.scan import Fence, ModelFolder, Scan, open_source, scan_version
from services.registry.artifacts.tree import shown
from services.registry.core.catalogue import Entry, Version, VersionState
from services.registry.core.errors import InvalidArtifact

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A version on disk, with its scan or the reason why there is none."""

    model: str
    number: int
    source: str
    scan: Scan | InvalidArtifact


def scan_models(
    models: Iterable[tuple[str, Path]], kind: str, fence: Fence
) -> tuple[list[Found], list[Problem]]:
    """Scan every version in these models' folders; `kind` is the default instance kind."""
    found: list[Found] = []
    problems: list[Problem] = []
    for model, path in models:
        try:
            source = _open(path, model, fence)
        except InvalidArtifact as error:
            problems.append(Problem(error.metadata["path"], error.metadata["problem"]))
            continue
        problems.extend(
            Problem(shown(path / stray), "not a version: versions are whole numbers from 1 up")
            for stray in source.strays
        )
        problems.extend(
            Problem(
                shown(path / str(number)),
                f"version {number} is specified for model '{model}', but the version directory is "
                "not present",
            )
            for number in source.absent
        )
        # The bare content of a version stands for a model with one version.
        numbers = source.numbers if source.numbers != (0,) else (1,)
        found.extend(
            Found(model, number, str(path), _scan(source, number, kind)) for number in numbers
        )
    return found, problems


def rescan(entries: Iterable[Entry], kind: str, fence: Fence) -> Iterator[Found]:
    """Scan the registered versions of these entries, as their sources are now."""
    for entry in entries:
        by_source = sorted(entry.versions.values(), key=lambda version: version.source)
        for path, versions in groupby(by_source, key=lambda version: version.source):
            yield from _at(path, entry.name, list(versions), kind, fence)


def rescan_completed(entry: Entry, number: int, config: bytes, kind: str, fence: Fence) -> Found:
    """Scan a registered version whose config a server has completed."""
    path = entry.versions[number].source
    try:
        source = _open(Path(path), entry.name, fence)
    except InvalidArtifact as error:
        return Found(entry.name, number, path, error)
    return Found(entry.name, number, path, _scan(source, number, kind, config))


def rescan_missing(
    entries: Iterable[Entry], repository: Path, found: Iterable[Found], kind: str, fence: Fence
) -> Iterator[Found]:
    """Scan the versions that came from the repository but were not found in it."""
    there = {(one.model, one.number) for one in found}
    for entry in entries:
        lost = {
            number: version
            for number, version in entry.versions.items()
            if repository in (Path(version.source), Path(version.source).parent)
            and (entry.name, number) not in there
        }
        yield from rescan([replace(entry, versions=lost)], kind, fence)


def number_conflict(known: Version | None, found: Found) -> Problem | None:
    """Return a problem if another folder that still exists already has the number."""
    if known is None or known.state is VersionState.INVALID:
        return None
    if known.digest:
        if Path(found.source).name == known.digest:  # the store has been moved
            return None
        return Problem(
            shown(found.source),
            f"{known.name} is already registered from {known.provenance}: give this one another "
            "number",
        )
    source, other = Path(found.source), Path(known.source)
    if source.resolve() == other.resolve() or not other.exists():
        return None
    return Problem(
        shown(source),
        f"{known.name} is already registered from {shown(other)}: give this one another number",
    )


def _at(path: str, model: str, versions: list[Version], kind: str, fence: Fence) -> Iterator[Found]:
    try:
        source = _open(Path(path), model, fence)
    except InvalidArtifact as error:
        yield from (Found(model, version.number, path, error) for version in versions)
        return
    for version in versions:
        yield Found(model, version.number, path, _scan(source, version.number, kind))


def _open(path: Path, model: str, fence: Fence) -> ModelFolder:
    """Raises InvalidArtifact, whatever is wrong: one model's files stop no other model."""
    try:
        return open_source(path, model, fence(path))
    except InvalidArtifact:
        raise
    except Exception as error:
        raise _unexpected(path, error) from error


def _scan(
    source: ModelFolder, number: int, kind: str, completed: bytes = b""
) -> Scan | InvalidArtifact:
    try:
        return scan_version(source, number, kind, completed)
    except InvalidArtifact as error:
        return error
    except Exception as error:
        return _unexpected(source.folder(number), error)


def _unexpected(path: Path, error: Exception) -> InvalidArtifact:
    _log.exception("unexpected failure while a model was read", path=shown(path), exc_info=error)
    return InvalidArtifact(
        path=shown(path), problem=f"it cannot be read: {type(error).__name__}: {error}"
    )
