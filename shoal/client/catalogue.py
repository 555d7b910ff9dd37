"""What exists, as the Registry is asked and told.

A `version` is a number or an alias. With an `etag`, a change is made only if it is still current.
`timeout`: seconds; None: the client's own. All raise CallFailed.
"""

import os
from collections.abc import Mapping
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from shoal import names
from shoal.client import reading, resources
from shoal.client.lookup import Version, found_model, pages, resource
from shoal.client.steps import Call, Operation
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1 import types_pb2 as catalogue

Weights = Mapping[int, int] | Mapping[str, int] | Mapping[Version, int]

STAGING: Final = 300.0  # seconds: large files are copied


def register(
    model: str,
    source: str | os.PathLike[str],
    *,
    version: int = 0,
    pending: bool = False,
    declared_memory: Mapping[str, int] | None = None,
    request_id: str = "",
    timeout: float | None = STAGING,
) -> Operation[resources.ModelVersion]:
    """Registers the files in `source` (a model's folder, or one version folder's content, on the
    Registry's host) as a version of `model`, which is made where it is new.

    `version` 0: the number of the folder, else the next free one. `pending`: not to be the default
    until it is approved. The version's state is INVALID where it cannot be served.
    """
    request = registry.RegisterModelVersionRequest(
        parent=names.model_name(model),
        source=os.fspath(source),
        version=version,
        pending=pending,
        declared_memory=declared_memory,
        request_id=request_id,
    )
    reply = yield Call("registry", "RegisterModelVersion", request, timeout)
    return reading.version(reply.version)


def import_repository(
    path: str | os.PathLike[str], *, timeout: float | None = STAGING
) -> Operation[resources.Imported]:
    """Registers every version folder of a Triton model repository on the Registry's host."""
    request = registry.ImportRepositoryRequest(path=os.fspath(path))
    reply = yield Call("registry", "ImportRepository", request, timeout)
    return resources.Imported(
        tuple(map(reading.version, reply.versions)),
        {problem.path: problem.reason for problem in reply.problems},
    )


def models(*, timeout: float | None = None) -> Operation[list[resources.Model]]:
    found = yield from pages("registry", "ListModels", registry.ListModelsRequest(), timeout)
    return [reading.model(one) for page in found for one in page.models]


def model(name: str, *, timeout: float | None = None) -> Operation[resources.Model]:
    request = registry.GetModelRequest(name=names.model_name(name))
    reply = yield Call("registry", "GetModel", request, timeout)
    return reading.model(reply.model)


def versions(
    model: str = "", *, timeout: float | None = None
) -> Operation[list[resources.ModelVersion]]:
    """Of all models without one."""
    request = registry.ListModelVersionsRequest(parent=names.model_name(model or "-"))
    found = yield from pages("registry", "ListModelVersions", request, timeout)
    return [reading.version(one) for page in found for one in page.versions]


def update_model(
    model: str,
    *,
    description: str | None = None,
    labels: Mapping[str, str] | None = None,
    retry_policy: str | None = None,
    residency: resources.Residency | None = None,
    etag: str = "",
    timeout: float | None = None,
) -> Operation[resources.Model]:
    """What is None stays as it is. `retry_policy`: ONCE or NEVER. A residency replaces the whole
    one."""
    message = catalogue.Model(
        name=names.model_name(model), description=description or "", labels=labels, etag=etag
    )
    if retry_policy is not None:
        message.retry_policy = catalogue.RetryPolicy.Value(f"RETRY_POLICY_{retry_policy}")
    if residency is not None:
        _set_residency(message.residency, residency)
    given = {
        "description": description,
        "labels": labels,
        "retry_policy": retry_policy,
        "residency": residency,
    }
    mask = FieldMask(paths=[name for name, value in given.items() if value is not None])
    request = registry.UpdateModelRequest(model=message, update_mask=mask)
    reply = yield Call("registry", "UpdateModel", request, timeout)
    return reading.model(reply.model)


def delete(
    model: str, version: Version = "", *, etag: str = "", timeout: float | None = None
) -> Operation[None]:
    """Deletes a version, or without one the model with all its versions."""
    name = yield from resource(model, version)
    if version:
        one = registry.DeleteModelVersionRequest(name=name, etag=etag)
        yield Call("registry", "DeleteModelVersion", one, timeout)
    else:
        whole = registry.DeleteModelRequest(name=name, etag=etag)
        yield Call("registry", "DeleteModel", whole, timeout)


def approve(
    model: str, version: Version, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.ModelVersion]:
    """Lets a PENDING or REJECTED version answer, and be the default if it is the highest."""
    name = yield from resource(model, version)
    request = registry.ApproveModelVersionRequest(name=name, etag=etag)
    reply = yield Call("registry", "ApproveModelVersion", request, timeout)
    return reading.version(reply.version)


def reject(
    model: str, version: Version, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.ModelVersion]:
    """Lets a version answer no more."""
    name = yield from resource(model, version)
    request = registry.RejectModelVersionRequest(name=name, etag=etag)
    reply = yield Call("registry", "RejectModelVersion", request, timeout)
    return reading.version(reply.version)


def set_alias(
    model: str, alias: str, version: int, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.Model]:
    """Gives a version a name that can be asked for as a version; "default" answers when none is."""
    request = registry.SetAliasRequest(
        name=names.alias_name(model, alias), version=version, etag=etag
    )
    reply = yield Call("registry", "SetAlias", request, timeout)
    return reading.model(reply.model)


def delete_alias(
    model: str, alias: str, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.Model]:
    request = registry.DeleteAliasRequest(name=names.alias_name(model, alias), etag=etag)
    reply = yield Call("registry", "DeleteAlias", request, timeout)
    return reading.model(reply.model)


def set_traffic(
    model: str, weights: Weights, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.Model]:
    """Shares out the requests that name no version: `{1: 95, 2: 5}`.

    Each target is a version or an alias of `model`, another model, or "OTHER:VERSION"; the weights
    are whole numbers, relative to each other.
    """
    found = yield from found_model(model)
    policy = catalogue.TrafficPolicy(name=names.policy_name(model), etag=etag)
    for target, weight in weights.items():
        policy.arms.add(target=_target(model, str(target), found.aliases), weight=weight)
    request = registry.SetTrafficPolicyRequest(traffic_policy=policy)
    reply = yield Call("registry", "SetTrafficPolicy", request, timeout)
    return reading.model(reply.model)


def clear_traffic(
    model: str, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.Model]:
    """Back to the default version alone."""
    request = registry.DeleteTrafficPolicyRequest(name=names.policy_name(model), etag=etag)
    reply = yield Call("registry", "DeleteTrafficPolicy", request, timeout)
    return reading.model(reply.model)


def _target(model: str, target: str, aliases: Mapping[str, int]) -> str:
    other, colon, version = target.partition(":")
    if colon:
        kind = "aliases" if names.is_alias(version) else "versions"
        return f"models/{other}/{kind}/{version}"
    if names.parse_version(target) is not None:
        return f"models/{model}/versions/{target}"
    return names.alias_name(model, target) if target in aliases else names.model_name(target)


def _set_residency(message: catalogue.Residency, residency: resources.Residency) -> None:
    for name in ("min_copies", "max_copies", "preload", "priority"):
        if (value := getattr(residency, name)) is not None:
            setattr(message, name, value)
    if residency.idle_ttl is not None:
        message.idle_ttl.FromMicroseconds(round(residency.idle_ttl * 1e6))
    message.required_labels.update(residency.required_labels)
    message.SetInParent()
