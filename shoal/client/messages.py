"""Conversions from the services' messages to the values in `resources`."""

from typing import Any

from shoal.client import resources, stored
from shoal.client.values import last, moment, seconds, version_name, version_names, word
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1 import types_pb2 as placed
from shoal.registry.v1 import types_pb2 as catalogue
from shoal.router.v1 import router_service_pb2 as router


def model(message: catalogue.Model) -> resources.Model:
    return resources.Model(
        name=last(message.name),
        description=message.description,
        labels=dict(message.labels),
        retry_policy=word(catalogue.RetryPolicy, message.retry_policy),
        default_version=message.default_version or None,
        aliases=dict(message.aliases),
        traffic=tuple(arm(one) for one in message.traffic_policy.arms),
        residency=residency(message.residency),
        create_time=moment(message.create_time),
        update_time=moment(message.update_time),
        etag=message.etag,
    )


def arm(message: catalogue.Arm) -> resources.Arm:
    _, name, *version = message.target.split("/")
    return resources.Arm(name, version[-1] if version else "", message.weight)


def residency(message: catalogue.Residency) -> resources.Residency:
    def given(name: str) -> Any:
        return getattr(message, name) if message.HasField(name) else None  # type: ignore[arg-type]

    return resources.Residency(
        min_copies=given("min_copies"),
        max_copies=given("max_copies"),
        idle_ttl=seconds(message.idle_ttl) if message.HasField("idle_ttl") else None,
        preload=given("preload"),
        priority=given("priority"),
        required_labels=dict(message.required_labels),
    )


def version(message: catalogue.ModelVersion) -> resources.ModelVersion:
    name = version_name(message.name)
    return resources.ModelVersion(
        model=name.model,
        version=name.version,
        state=word(catalogue.VersionState, message.state),
        invalid_reason=message.invalid_reason,
        source=message.source,
        artifact_bytes=message.artifact_bytes,
        declared_memory=dict(message.declared_memory),
        requires=version_names(message.requires),
        ensemble=message.ensemble,
        pinned=message.pinned,
        config_digest=message.config_digest,
        fingerprint=message.fingerprint,
        create_time=moment(message.create_time),
        etag=message.etag,
        waiting_reason=message.waiting_reason,
        provenance=stored.provenance(message.provenance),
    )


def server(message: placed.Server) -> resources.Server:
    return resources.Server(
        name=last(message.name),
        address=message.address,
        state=word(placed.ServerState, message.state),
        state_reason=message.state_reason,
        memory_budget=dict(message.memory_budget),
        memory_reserved=dict(message.memory_reserved),
        memory_measured=dict(message.memory_measured),
        memory_soft_limit=dict(message.memory_soft_limit),
        memory_leaked=dict(message.memory_leaked),
        max_models=message.max_models,
        models=message.models,
        labels=dict(message.labels),
        restart_wanted=message.restart_wanted,
    )


def replica(message: placed.Replica) -> resources.Replica:
    name = version_name(message.version)
    return resources.Replica(
        server=message.name.split("/")[1],
        model=name.model,
        version=name.version,
        state=word(placed.ReplicaState, message.state),
        state_reason=message.state_reason,
        memory_reserved=dict(message.memory_reserved),
        memory_measured=dict(message.memory_measured),
        idle=seconds(message.idle) if message.HasField("idle") else None,
        in_flight=message.in_flight,
        pinned=message.pinned,
        held_by=version_names(message.held_by),
        load_duration=(
            seconds(message.load_duration) if message.HasField("load_duration") else None
        ),
    )


def event(message: placed.Event) -> resources.Event:
    return resources.Event(
        epoch=message.epoch,
        sequence=message.sequence,
        time=moment(message.time),
        kind=word(placed.EventKind, message.kind),
        server=last(message.server),
        version=version_name(message.version) if message.version else None,
        reason=message.reason,
        for_version=version_name(message.for_version) if message.for_version else None,
        trace_id=message.trace_id,
    )


# --- explanations ---------------------------------------------------------------------------------


def route_arm(message: router.RouteArm) -> resources.RouteArm:
    return resources.RouteArm(
        message.model, message.version, message.share, tuple(map(last, message.servers))
    )


def explanation(
    name: str,
    stays: controller.WhyResidentResponse,
    absent: controller.WhyNotLoadedResponse,
    evicted: controller.WhyEvictedResponse,
) -> resources.VersionExplanation:
    """Return the answers to three questions about one version as one value."""
    return resources.VersionExplanation(
        version=version_name(name),
        reason=absent.reason,
        waiters=absent.waiters,
        turn=absent.turn or None,
        failure=failure(absent.failure) if absent.HasField("failure") else None,
        servers=tuple(map(verdict, absent.servers)),
        stays=tuple(map(stay, stays.replicas)),
        evictions=tuple(map(eviction, evicted.evictions)),
    )


def stay(message: controller.ReplicaExplanation) -> resources.Stay:
    return resources.Stay(
        replica=replica(message.replica),
        placed=message.placed,
        kept_by=tuple(message.kept_by),
        eviction_turn=message.eviction_turn or None,
        candidates=message.candidates,
        weighed=dict(message.weighed),
    )


def eviction(message: controller.EvictionExplanation) -> resources.Eviction:
    return resources.Eviction(
        event(message.event),
        tuple(
            resources.Candidate(version_name(one.version), one.evicted, dict(one.weighed))
            for one in message.candidates
        ),
    )


def failure(message: controller.LoadFailure) -> resources.LoadFailure:
    return resources.LoadFailure(
        last(message.server), message.cause, message.count, seconds(message.retry_after)
    )


def verdict(message: controller.ServerVerdict) -> resources.ServerVerdict:
    return resources.ServerVerdict(
        server=last(message.server),
        holds=message.holds,
        possible=message.possible,
        reason=message.reason,
        score=message.score,
        victims=version_names(message.victims),
    )
