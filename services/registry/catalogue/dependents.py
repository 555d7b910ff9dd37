"""The versions that are made of what a change touches, resolved again before it is committed."""

from dataclasses import replace

import structlog

from services.registry.catalogue.change import Change
from services.registry.core.catalogue import Entry, Version
from services.registry.core.resolution import resolved
from services.registry.formats.config import config_digest, with_parts
from services.registry.formats.ensembles import fitted
from services.registry.formats.refusal import Unservable

_log = structlog.get_logger(__name__)


async def resolve_dependents(change: Change) -> None:
    """Choose the parts of the touched versions, and of whatever is made of those in turn."""
    touched = change.touched
    rounds = 0
    while touched:
        users = await change.users(touched)
        await change.load(touched)
        entries = {name: entry for name in sorted(touched) if (entry := change.loaded(name))}
        entries |= {entry.name: entry for entry in users}
        touched = set()
        for entry in entries.values():
            await _load_parts(change, entry)
            after = _with_resolved_versions(change, entry)
            if after != entry:
                change.put(after)
                touched.add(entry.name)
        rounds += 1
        assert rounds < 1000, f"the parts of {sorted(touched)} keep changing"


async def _load_parts(change: Change, entry: Entry) -> None:
    """Load what the entry's versions are made of, and what that is made of in turn."""
    waiting, seen = {entry.name}, {entry.name}
    while waiting:
        await change.load(waiting)
        found = {
            part.model
            for name in waiting
            if (loaded := change.loaded(name))
            for version in loaded.versions.values()
            for part in version.parts
        }
        waiting = found - seen
        seen |= found


def _with_resolved_versions(change: Change, entry: Entry) -> Entry:
    for version in entry.versions.values():
        if version.parts:
            entry = entry.with_version(_resolve(change, version))
    return entry


def _resolve(change: Change, version: Version) -> Version:
    after = _fitted(resolved(version, change.loaded), change)
    if after == version:
        return version
    for old, new in zip(version.parts, after.parts, strict=True):
        if old.chosen and old.chosen != new.chosen:
            _log.warning(
                "a part that no longer answers was replaced",
                version=version.name,
                part=new.model,
                before=old.chosen,
                now=new.chosen,
            )
    if after.parts_problem and after.parts_problem != version.parts_problem:
        _log.warning("version cannot be served", version=version.name, why=after.parts_problem)
    return with_chosen_parts(after)


def _fitted(version: Version, change: Change) -> Version:
    """Return an ensemble that fits its parts, or says why it does not."""
    if version.parts_problem or version.parts_waiting:
        return version
    if not (version.ensemble and version.config):
        return version
    parts = [
        entry.versions[part.chosen].config
        for part in version.parts
        if (entry := change.loaded(part.model))
    ]
    try:
        return replace(version, config=fitted(version.config, parts))
    except Unservable as error:
        return replace(version, parts_problem=str(error))


def with_chosen_parts(version: Version) -> Version:
    """Return the version with a config that names the chosen parts."""
    if not version.config:
        return version
    config = with_parts(version.config, version.parts)
    digest = config_digest(config, version.auxiliary_digest)
    return replace(version, config=config, config_digest=digest)
