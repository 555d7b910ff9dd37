"""Operations on models, versions, aliases and traffic policies, at the Registry."""

import os
from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from shoal import names
from shoal.client import messages, resources
from shoal.client.operations import Call, Operation
from shoal.client.pages import all_pages
from shoal.client.resolve import Version, registered_model, resource_name, traffic_target
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
    """Register files as a version of a model. A new model is created.

    Args:
        model: The model's name.
        source: A folder on the Registry's host, which is served in place: a model's (config.pbtxt
            and numbered folders) or one version's. Or a source to fetch, as "s3://bucket/model".
        version: The number of the version. 0 means the number of the version folder if there is one
            in `source`, else the next free number.
        pending: Whether the version must be approved before it can be the default.
        declared_memory: Bytes that the version takes, by resource ("ram", "gpu:0"). Learned while
            it runs if not given.
        request_id: A repeated call with the same ID returns what the first one created.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The version. Its state is INVALID if it cannot be served; `invalid_reason` says why.

    Raises:
        AlreadyExists: The version exists.
        CallFailed: The call was refused for another reason, or nobody answered.
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
    return messages.version(reply.version)


def import_repository(
    path: str | os.PathLike[str], *, timeout: float | None = STAGING
) -> Operation[resources.Imported]:
    """Register every version folder of a Triton model repository.

    Args:
        path: A folder on the Registry's host. It is only read.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The versions that were found, what could not be imported, and what has changed.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = registry.ImportRepositoryRequest(path=os.fspath(path))
    reply = yield Call("registry", "ImportRepository", request, timeout)
    return resources.Imported(
        tuple(map(messages.version, reply.versions)),
        _reasons(reply.problems),
        tuple(filter(None, map(names.parse_version_name, reply.changed))),
    )


def import_problems(*, timeout: float | None = None) -> Operation[dict[str, str]]:
    """Return what could not be imported, as of the last import of each repository.

    Args:
        timeout: Seconds for each page of the list. None means the client's own.

    Returns:
        For each file or folder, the reason.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = registry.ListImportProblemsRequest()
    found = yield from all_pages("registry", "ListImportProblems", request, timeout)
    return _reasons(one for page in found for one in page.problems)


def _reasons(problems: Iterable[registry.ImportProblem]) -> dict[str, str]:
    return {problem.path: problem.reason for problem in problems}


def models(
    *,
    filter: str = "",  # noqa: A002
    order_by: str = "",
    timeout: float | None = None,
) -> Operation[list[resources.Model]]:
    """Return models.

    Args:
        filter: Which models, such as 'labels.team = "search" AND state = APPROVED'; "" for all.
        order_by: "create_time desc" and the like; "" for the order of names.
        timeout: Seconds for each page of the list. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = registry.ListModelsRequest(filter=filter, order_by=order_by)
    found = yield from all_pages("registry", "ListModels", request, timeout)
    return [messages.model(one) for page in found for one in page.models]


def model(name: str, *, timeout: float | None = None) -> Operation[resources.Model]:
    """Return a model.

    Args:
        name: The model's name.
        timeout: Seconds for the call. None means the client's own.

    Raises:
        NotFound: There is no such model.
        CallFailed: The call was refused for another reason, or nobody answered.
    """
    request = registry.GetModelRequest(name=names.model_name(name))
    reply = yield Call("registry", "GetModel", request, timeout)
    return messages.model(reply.model)


def versions(
    model: str = "",
    *,
    filter: str = "",  # noqa: A002
    order_by: str = "",
    timeout: float | None = None,
) -> Operation[list[resources.ModelVersion]]:
    """Return the versions of a model.

    Args:
        model: The model's name; "" for the versions of all models.
        filter: Which versions, such as 'format = onnx AND source : "s3"'; "" for all.
        order_by: "size desc" and the like; "" for the order of names and numbers.
        timeout: Seconds for each page of the list. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    parent = names.model_name(model or "-")
    request = registry.ListModelVersionsRequest(parent=parent, filter=filter, order_by=order_by)
    found = yield from all_pages("registry", "ListModelVersions", request, timeout)
    return [messages.version(one) for page in found for one in page.versions]


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
    """Change a model. Whatever is None stays as it is.

    Args:
        model: The model's name.
        description: A text for people.
        labels: Replaces all labels.
        retry_policy: What the Router may do when a server is lost during a request: ONCE to send it
            once more, NEVER for models whose requests change something.
        residency: Replaces the whole residency, including what is None in it.
        etag: If given, the change is made only while it is the model's current one.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The model after the change.

    Raises:
        Aborted: The etag is not the current one.
        CallFailed: The call was refused for another reason, or nobody answered.
        ValueError: There is no such retry policy.
    """
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
    return messages.model(reply.model)


def delete(
    model: str, version: Version = "", *, etag: str = "", timeout: float | None = None
) -> Operation[None]:
    """Delete a version, or a model with all its versions.

    Args:
        model: The model's name.
        version: A version or an alias; "" deletes the model.
        etag: If given, the version or the model is deleted only while it is its current one.
        timeout: Seconds for the call. None means the client's own.

    Raises:
        Aborted: The etag is not the current one.
        FailedPrecondition: An alias, a traffic policy or an ensemble uses it.
        CallFailed: The call was refused for another reason, or nobody answered.
    """
    name = yield from resource_name(model, version)
    if version:
        one = registry.DeleteModelVersionRequest(name=name, etag=etag)
        yield Call("registry", "DeleteModelVersion", one, timeout)
    else:
        whole = registry.DeleteModelRequest(name=name, etag=etag)
        yield Call("registry", "DeleteModel", whole, timeout)


def approve(
    model: str, version: Version, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.ModelVersion]:
    """Approve a PENDING or REJECTED version.

    Requests can then reach it. It becomes the default version if it is the highest approved one,
    unless the alias "default" names another.

    Args:
        model: The model's name.
        version: A version or an alias.
        etag: If given, the change is made only while it is the version's current one.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The version after the change.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    name = yield from resource_name(model, version)
    request = registry.ApproveModelVersionRequest(name=name, etag=etag)
    reply = yield Call("registry", "ApproveModelVersion", request, timeout)
    return messages.version(reply.version)


def reject(
    model: str, version: Version, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.ModelVersion]:
    """Reject a version. Requests for it are refused from then on.

    Args:
        model: The model's name.
        version: A version or an alias.
        etag: If given, the change is made only while it is the version's current one.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The version after the change.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    name = yield from resource_name(model, version)
    request = registry.RejectModelVersionRequest(name=name, etag=etag)
    reply = yield Call("registry", "RejectModelVersion", request, timeout)
    return messages.version(reply.version)


def set_alias(
    model: str, alias: str, version: int, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.Model]:
    """Create an alias for a version, or move it there.

    Requests can name the alias as their version. The alias "default" is the version that answers
    when none is requested.

    Args:
        model: The model's name.
        alias: The alias: a letter, then letters, digits, "_" and "-".
        version: The number of the version.
        etag: If given, the change is made only while it is the model's current one.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The model after the change.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = registry.SetAliasRequest(
        name=names.alias_name(model, alias), version=version, etag=etag
    )
    reply = yield Call("registry", "SetAlias", request, timeout)
    return messages.model(reply.model)


def delete_alias(
    model: str, alias: str, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.Model]:
    """Delete an alias. The version that it names stays.

    Args:
        model: The model's name.
        alias: The alias.
        etag: If given, the change is made only while it is the model's current one.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The model after the change.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = registry.DeleteAliasRequest(name=names.alias_name(model, alias), etag=etag)
    reply = yield Call("registry", "DeleteAlias", request, timeout)
    return messages.model(reply.model)


def set_traffic(
    model: str, weights: Weights, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.Model]:
    """Split the requests that name no version between several versions or models.

    Args:
        model: The model's name.
        weights: The weight of each target, such as `{1: 95, 2: 5}`. A target is a version or an
            alias of `model`, another model, or "OTHER:VERSION". Weights are whole numbers relative
            to each other.
        etag: If given, the change is made only while it is the traffic policy's current one.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The model after the change.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    found = yield from registered_model(model)
    policy = catalogue.TrafficPolicy(name=names.policy_name(model), etag=etag)
    for target, weight in weights.items():
        policy.arms.add(target=traffic_target(model, str(target), found.aliases), weight=weight)
    request = registry.SetTrafficPolicyRequest(traffic_policy=policy)
    reply = yield Call("registry", "SetTrafficPolicy", request, timeout)
    return messages.model(reply.model)


def clear_traffic(
    model: str, *, etag: str = "", timeout: float | None = None
) -> Operation[resources.Model]:
    """Delete a model's traffic policy, so that its default version answers.

    Args:
        model: The model's name.
        etag: If given, the change is made only while it is the traffic policy's current one.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The model after the change.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = registry.DeleteTrafficPolicyRequest(name=names.policy_name(model), etag=etag)
    reply = yield Call("registry", "DeleteTrafficPolicy", request, timeout)
    return messages.model(reply.model)


def _set_residency(message: catalogue.Residency, residency: resources.Residency) -> None:
    for name in ("min_copies", "max_copies", "preload", "priority"):
        if (value := getattr(residency, name)) is not None:
            setattr(message, name, value)
    if residency.idle_ttl is not None:
        message.idle_ttl.FromMicroseconds(round(residency.idle_ttl * 1e6))
    message.required_labels.update(residency.required_labels)
    message.SetInParent()
