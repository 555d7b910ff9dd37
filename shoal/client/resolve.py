"""Resolve the models, versions and aliases that callers name to resource names."""

from collections.abc import Mapping

import grpc

from shoal import names
from shoal.client.errors import NotFound
from shoal.client.operations import Call, Operation
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1 import types_pb2 as catalogue

Version = int | str


def resource_name(model: str, version: Version) -> Operation[str]:
    """Return the name of a version, or of the model where `version` is "" or 0.

    An alias is looked up in the Registry, because the Controller knows none. Raises NotFound where
    the model has no such alias.
    """
    if not version:
        return names.model_name(model)
    text = str(version)
    if not names.is_alias(text):
        return f"{names.model_name(model)}/versions/{text}"
    aliases = (yield from registered_model(model)).aliases
    if text not in aliases:
        raise no_such_alias(model, text, aliases)
    return names.version_name(model, aliases[text])


def registered_model(model: str) -> Operation[catalogue.Model]:
    """Return the Registry's message about a model."""
    request = registry.GetModelRequest(name=names.model_name(model))
    reply: registry.GetModelResponse = yield Call("registry", "GetModel", request)
    return reply.model


def no_such_alias(model: str, alias: str, aliases: Mapping[str, int]) -> NotFound:
    """Return the error that a service would send if it knew aliases."""
    known = ", ".join(sorted(aliases)) or "none"
    return NotFound(
        grpc.StatusCode.NOT_FOUND,
        f"model {model!r} has no alias {alias!r}; it has: {known}",
        reason="VERSION_NOT_FOUND",
        metadata={"model": model, "version": alias},
    )


def traffic_target(model: str, target: str, aliases: Mapping[str, int]) -> str:
    """Return the resource name that a target of `model`'s traffic policy stands for.

    A target is a version or an alias of `model`, another model, or "OTHER:VERSION".
    """
    other, colon, version = target.partition(":")
    if colon:
        kind = "aliases" if names.is_alias(version) else "versions"
        return f"models/{other}/{kind}/{version}"
    if names.parse_version(target) is not None:
        return f"models/{model}/versions/{target}"
    return names.alias_name(model, target) if target in aliases else names.model_name(target)
