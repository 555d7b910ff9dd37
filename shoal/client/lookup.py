"""Steps that several operations share: resource names, and lists that come in pages."""

from typing import Any

import grpc

from shoal import names
from shoal.client.errors import NotFound
from shoal.client.steps import Call, Operation
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1 import types_pb2 as catalogue

Version = int | str


def resource(model: str, version: Version) -> Operation[str]:
    """The resource name; an alias is looked up, for the Controller knows none."""
    if not version:
        return names.model_name(model)
    text = str(version)
    if not names.is_alias(text):
        return f"{names.model_name(model)}/versions/{text}"
    aliases = (yield from found_model(model)).aliases
    if text not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise NotFound(
            grpc.StatusCode.NOT_FOUND,
            f"model {model!r} has no alias {text!r}; it has: {known}",
            reason="VERSION_NOT_FOUND",
            metadata={"model": model, "version": text},
        )
    return names.version_name(model, aliases[text])


def found_model(model: str) -> Operation[catalogue.Model]:
    request = registry.GetModelRequest(name=names.model_name(model))
    reply: registry.GetModelResponse = yield Call("registry", "GetModel", request)
    return reply.model


def pages(service: str, method: str, request: Any, timeout: float | None) -> Operation[list[Any]]:
    """Every page of a List call."""
    found = [(yield Call(service, method, request, timeout))]
    while found[-1].next_page_token:
        request.page_token = found[-1].next_page_token
        found.append((yield Call(service, method, request, timeout)))
    return found
