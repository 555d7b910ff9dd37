"""Conversions between catalogue values and protobuf messages."""

import math
from typing import Any

from services.common.errors import InvalidField
from services.registry.api.storage_messages import provenance, source_text, timestamp
from services.registry.artifacts.repository import Problem
from services.registry.catalogue.store import Snapshot
from services.registry.catalogue.watch import Delta
from services.registry.core import validation
from services.registry.core.catalogue import (
    Entry,
    PartSource,
    RetryPolicy,
    TrafficPolicy,
    Version,
    VersionState,
)
from services.registry.core.footprint import Footprint, LoadFailure
from services.registry.core.residency import Residency, checked, idle_ttl_us
from services.registry.core.rules import etag
from services.registry.formats.config import is_decoupled, is_stateful, number_of_steps
from shoal import names
from shoal.registry.v1 import registry_service_pb2 as service
from shoal.registry.v1 import types_pb2 as types

_STATES = {
    VersionState.PENDING: types.VERSION_STATE_PENDING,
    VersionState.APPROVED: types.VERSION_STATE_APPROVED,
    VersionState.REJECTED: types.VERSION_STATE_REJECTED,
    VersionState.INVALID: types.VERSION_STATE_INVALID,
    VersionState.WAITING: types.VERSION_STATE_WAITING,
}
_SOURCES = {
    PartSource.CONFIG: types.REQUIREMENT_SOURCE_CONFIG,
    PartSource.CODE: types.REQUIREMENT_SOURCE_CODE,
    PartSource.CALL: types.REQUIREMENT_SOURCE_CALL,
}
_RETRY_POLICIES = {
    RetryPolicy.ONCE: types.RETRY_POLICY_ONCE,
    RetryPolicy.NEVER: types.RETRY_POLICY_NEVER,
}


def model(entry: Entry) -> types.Model:
    known = entry.model
    message = types.Model(
        name=names.model_name(known.name),
        description=known.description,
        labels=known.labels,
        retry_policy=_RETRY_POLICIES[known.retry_policy],
        default_version=entry.default_version,
        aliases=known.aliases,
        create_time=timestamp(known.created_us),
        update_time=timestamp(known.updated_us),
        etag=etag(known.revision),
    )
    if known.policy is not None:
        message.traffic_policy.CopyFrom(_policy(known.name, known.policy))
    if known.residency != Residency():
        message.residency.CopyFrom(_residency(known.residency))
    return message


def version(known: Version) -> types.ModelVersion:
    return types.ModelVersion(
        name=known.name,
        state=_STATES[known.state],
        source=source_text(known),
        provenance=provenance(known),
        config=known.config,
        probe=known.probe,
        config_digest=known.config_digest,
        artifact_bytes=known.artifact_bytes,
        fingerprint=known.fingerprint,
        declared_memory=known.declared_memory,
        requires=map(str, known.requires),
        requirements=_requirements(known),
        ensemble=known.ensemble,
        stateful=is_stateful(known.config),
        decoupled=None if known.waits_for else is_decoupled(known.config),
        pinned=known.pinned,
        invalid_reason=known.problem,
        waiting_reason=known.waits_for,
        create_time=timestamp(known.created_us),
        etag=etag(known.revision),
    )


def _requirements(known: Version) -> list[types.Requirement]:
    steps = number_of_steps(known.config) if known.ensemble else 0
    found: dict[str, types.Requirement] = {}
    for index, part in enumerate(known.parts):
        if part.chosen:
            name = names.version_name(part.model, part.chosen)
            one = found.setdefault(
                name, types.Requirement(version=name, source=_SOURCES[part.source])
            )
            # A step of an ensemble names the chosen version to its server.
            one.unversioned |= not part.written and index >= steps
    return list(found.values())


def entry(known: Entry) -> types.CatalogEntry:
    return types.CatalogEntry(model=model(known), versions=map(version, known.versions.values()))


def snapshot(whole: Snapshot) -> service.WatchCatalogResponse:
    return service.WatchCatalogResponse(
        revision=whole.revision,
        snapshot=service.CatalogSnapshot(entries=map(entry, whole.entries.values())),
    )


def delta(news: Delta) -> service.WatchCatalogResponse:
    """Return a delta as a message; an empty one becomes a checkpoint."""
    if not news.changed:
        return service.WatchCatalogResponse(
            revision=news.revision, checkpoint=service.CatalogCheckpoint()
        )
    changed = sorted(news.changed.items())
    return service.WatchCatalogResponse(
        revision=news.revision,
        delta=service.CatalogDelta(
            entries=[entry(known) for _, known in changed if known],
            removed_models=[names.model_name(name) for name, known in changed if not known],
        ),
    )


def problem(known: Problem) -> service.ImportProblem:
    return service.ImportProblem(path=known.path, reason=known.reason)


def footprint(known: Footprint) -> types.Footprint:
    message = types.Footprint(
        version=str(known.version),
        config_digest=known.config_digest,
        memory=known.memory,
        fingerprint=known.fingerprint,
    )
    message.load_duration.FromMicroseconds(known.load_us)
    if known.used_us:
        message.uses = known.uses
        message.last_use_time.FromMicroseconds(known.used_us)
    if known.failure is not None:
        failure = known.failure
        message.failure.server, message.failure.cause = failure.server, failure.cause
        message.failure.count, message.failure.set_aside = failure.count, failure.set_aside
        message.failure.retry_time.FromMicroseconds(failure.retry_us)
    return message


def footprint_of(index: int, message: types.Footprint) -> Footprint:
    """Read a report's footprint. Raises InvalidName, InvalidVersion, InvalidField."""
    field = f"footprints[{index}]"
    load_us = message.load_duration.ToMicroseconds()
    if load_us < 0:
        raise InvalidField(field=f"{field}.load_duration", problem="it is negative")
    used_us = message.last_use_time.ToMicroseconds()
    if used_us < 0:
        raise InvalidField(field=f"{field}.last_use_time", problem="it is before 1970")
    if not (math.isfinite(message.uses) and message.uses >= 0):
        raise InvalidField(field=f"{field}.uses", problem="it is negative or no number")
    return Footprint(
        validation.version_name(f"{field}.version", message.version),
        validation.token(f"{field}.config_digest", message.config_digest, required=True),
        validation.memory(f"{field}.memory", message.memory),
        load_us,
        validation.token(f"{field}.fingerprint", message.fingerprint),
        message.uses if used_us else 0.0,
        used_us,
        _failure_of(field, message.failure) if message.HasField("failure") else None,
    )


def _failure_of(field: str, message: types.LoadFailure) -> LoadFailure:
    retry_us = message.retry_time.ToMicroseconds()
    if message.count < 0:
        raise InvalidField(field=f"{field}.failure.count", problem="it is negative")
    if retry_us < 0:
        raise InvalidField(field=f"{field}.failure.retry_time", problem="it is before 1970")
    cause = validation.bounded(f"{field}.failure.cause", message.cause)
    server = validation.bounded(f"{field}.failure.server", message.server)
    return LoadFailure(server, cause, message.count, retry_us, message.set_aside)


def retry_policy_of(number: int) -> RetryPolicy:
    """Read a retry policy; unspecified is the default. Raises InvalidField."""
    for policy, value in _RETRY_POLICIES.items():
        if number in (value, types.RETRY_POLICY_UNSPECIFIED):
            return policy
    raise InvalidField(field="model.retry_policy", problem=f"{number} is unknown")


def residency_of(message: types.Residency) -> Residency:
    """Read a model's residency settings. Raises InvalidField."""

    def said(name: Any) -> Any:
        return getattr(message, name) if message.HasField(name) else None

    ttl = said("idle_ttl")
    return checked(
        Residency(
            min_copies=said("min_copies"),
            max_copies=said("max_copies"),
            idle_ttl_us=None if ttl is None else idle_ttl_us(ttl.ToNanoseconds()),
            preload=said("preload"),
            priority=said("priority"),
            required_labels=dict(sorted(message.required_labels.items())),
        )
    )


def _residency(known: Residency) -> types.Residency:
    message = types.Residency(
        min_copies=known.min_copies,
        max_copies=known.max_copies,
        preload=known.preload,
        priority=known.priority,
        required_labels=known.required_labels,
    )
    if known.idle_ttl_us is not None:
        message.idle_ttl.FromMicroseconds(known.idle_ttl_us)
    return message


def _policy(model_name: str, known: TrafficPolicy) -> types.TrafficPolicy:
    return types.TrafficPolicy(
        name=names.policy_name(model_name),
        arms=[types.Arm(target=str(arm.target), weight=arm.weight) for arm in known.arms],
        etag=etag(known.revision),
    )
