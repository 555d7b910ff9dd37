"""Conversions between catalogue values and table rows."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sqlalchemy import RowMapping

from services.registry.core.catalogue import (
    Arm,
    Entry,
    Model,
    Part,
    PartSource,
    RetryPolicy,
    Target,
    TrafficPolicy,
    Version,
    VersionState,
)
from services.registry.core.footprint import Footprint, LoadFailure
from services.registry.core.imports import Import, ImportState
from services.registry.core.provenance import Provenance
from services.registry.core.residency import Residency
from services.registry.core.source import Source
from services.registry.core.source_watch import SourceWatch
from services.registry.core.traffic import parse_target
from shoal.names import ModelVersionName

Row = RowMapping


def model_row(model: Model) -> dict[str, Any]:
    policy = model.policy
    return {
        "name": model.name,
        "description": model.description,
        "labels": dict(model.labels),
        "retry_policy": model.retry_policy.value,
        "residency": _set_fields(model.residency),
        "aliases": dict(model.aliases),
        "arms": [[str(arm.target), arm.weight] for arm in policy.arms] if policy else [],
        "policy_revision": policy.revision if policy else 0,
        "created_us": model.created_us,
        "updated_us": model.updated_us,
        "revision": model.revision,
    }


def model_of(row: Row) -> Model:
    arms = tuple(Arm(_target(text), weight) for text, weight in row["arms"])
    return Model(
        name=row["name"],
        description=row["description"],
        labels=row["labels"],
        retry_policy=RetryPolicy(row["retry_policy"]),
        residency=Residency(**row["residency"]),
        aliases=row["aliases"],
        policy=TrafficPolicy(arms, row["policy_revision"]) if arms else None,
        created_us=row["created_us"],
        updated_us=row["updated_us"],
        revision=row["revision"],
    )


def version_row(version: Version) -> dict[str, Any]:
    return {
        "model": version.model,
        "number": version.number,
        "verdict": version.verdict.value,
        "source": version.source,
        "config": version.config,
        "probe": version.probe or None,
        "config_digest": version.config_digest,
        "auxiliary_digest": version.auxiliary_digest,
        "artifact_bytes": version.artifact_bytes,
        "fingerprint": version.fingerprint,
        "ensemble": version.ensemble,
        "parts": [
            [part.model, part.written, part.chosen, part.source.value] for part in version.parts
        ],
        "declared_memory": dict(version.declared_memory),
        "pinned": version.pinned,
        "artifact_problem": version.artifact_problem,
        "parts_problem": version.parts_problem,
        "parts_waiting": version.parts_waiting,
        "incomplete": version.incomplete,
        "completion_problem": version.completion_problem,
        "scanned": version.scanned,
        "digest": version.digest,
        "provenance": _provenance_row(version.provenance),
        "created_us": version.created_us,
        "revision": version.revision,
    }


def version_of(row: Row) -> Version:
    fields = dict(row)
    fields["verdict"] = VersionState(row["verdict"])
    fields["probe"] = row["probe"] or b""
    fields["parts"] = tuple(_part(*part) for part in row["parts"])
    fields["provenance"] = _provenance_of(fields.pop("digest"), row["provenance"])
    return Version(**fields)


def _provenance_row(provenance: Provenance | None) -> dict[str, Any] | None:
    if provenance is None:
        return None
    source = provenance.source
    return {
        "source": [source.scheme, source.locator, source.revision],
        "folder": provenance.folder,
        "who": provenance.who,
        "at_us": provenance.at_us,
        "about": dict(provenance.about),
    }


def _provenance_of(digest: str, row: dict[str, Any] | None) -> Provenance | None:
    if row is None:
        return None
    return Provenance(**{**row, "source": Source(*row["source"]), "digest": digest})


def import_row(known: Import) -> dict[str, Any]:
    source = known.source
    return {
        "id": known.id,
        "model": known.model,
        "source": [source.scheme, source.locator, source.revision],
        "folder": known.folder,
        "number": known.number,
        "declared_memory": dict(known.declared_memory),
        "pending": known.pending,
        "who": known.who,
        "state": known.state.value,
        "reason": known.reason,
        "registered": known.registered,
        "bytes": known.bytes,
        "files": known.files,
        "started_us": known.started_us,
        "ended_us": known.ended_us,
    }


def import_of(row: Row) -> Import:
    fields = dict(row)
    fields["source"] = Source(*row["source"])
    fields["state"] = ImportState(row["state"])
    return Import(**fields)


def source_watch_row(watch: SourceWatch) -> dict[str, Any]:
    source = watch.source
    return {
        "id": watch.id,
        "model": watch.model,
        "source": [source.scheme, source.locator, source.revision],
        "last_import": watch.last_import,
        "declared_memory": dict(watch.declared_memory),
        "pending": watch.pending,
        "who": watch.who,
        "problem": watch.problem,
        "started_us": watch.started_us,
    }


def source_watch_of(row: Row) -> SourceWatch:
    return SourceWatch(**{**row, "source": Source(*row["source"])})


def entries_of(models: Iterable[Row], versions: Iterable[Row]) -> dict[str, Entry]:
    """Build entries. `versions` are in ascending order; those of other models are left out."""
    found = {row["name"]: Entry(model_of(row), {}) for row in models}
    grouped: dict[str, dict[int, Version]] = {name: {} for name in found}
    for row in versions:
        if row["model"] in grouped:
            grouped[row["model"]][row["number"]] = version_of(row)
    return {name: Entry(entry.model, grouped[name]) for name, entry in found.items()}


def use_rows(entry: Entry) -> set[tuple[str, int, str]]:
    """Return (user, its version or 0 for its policy, used model) for each other model in use."""
    arms = entry.model.policy.arms if entry.model.policy else ()
    used = {(0, arm.target.model) for arm in arms} | {
        (version.number, part.model)
        for version in entry.versions.values()
        for part in version.parts
    }
    return {(entry.name, number, model) for number, model in used if model != entry.name}


def footprint_row(footprint: Footprint) -> dict[str, Any]:
    return {
        "model": footprint.version.model,
        "number": footprint.version.version,
        "config_digest": footprint.config_digest,
        "memory": dict(footprint.memory),
        "load_us": footprint.load_us,
        "uses": footprint.uses,
        "used_us": footprint.used_us,
        "failure": asdict(footprint.failure) if footprint.failure else None,
    }


def footprint_of(row: Row) -> Footprint:
    version = ModelVersionName(row["model"], row["number"])
    return Footprint(
        version,
        row["config_digest"],
        row["memory"],
        row["load_us"],
        row["fingerprint"],
        row["uses"],
        row["used_us"],
        LoadFailure(**row["failure"]) if row["failure"] else None,
    )


def _part(model: str, written: int, chosen: int, source: str = PartSource.CONFIG.value) -> Part:
    return Part(model, written, chosen, PartSource(source))


def _set_fields(residency: Residency) -> dict[str, Any]:
    return {name: value for name, value in asdict(residency).items() if value not in (None, {})}


def _target(text: str) -> Target:
    target = parse_target(text)
    assert target is not None, text  # only checked targets are stored
    return target
