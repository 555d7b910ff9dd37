"""After a change in the catalogue: waiting until the Router answers by it.

The change comes to the Router through the Controller, some milliseconds later; a request that a
script sends right after its command must not be answered by what was before.
"""

import time
from typing import TYPE_CHECKING, Final

import typer

from shoal.cli.calling import addresses, complain, told

if TYPE_CHECKING:
    from shoal.client import Client

WITHIN: Final = 5.0  # seconds
_POLL: Final = 0.02  # seconds


def await_router(
    context: typer.Context, shoal: "Client", model: str, asked: str, version: int | None
) -> None:
    """Until requests for version `asked` of `model` ("" for none) go to `version`, None: nowhere.

    Where they don't in time, or the Router can't be asked, a complaint says so: the change itself
    is made.
    """
    from shoal.client import CallFailed

    deadline = time.monotonic() + WITHIN
    trouble = "it has not heard of it from the Controller"
    try:
        while time.monotonic() < deadline:
            if _goes_to(shoal, model, asked) == ([] if version is None else [version]):
                return
            time.sleep(_POLL)
    except CallFailed as error:
        trouble = told(error, addresses(context))
    complain(f"the change is made, but the Router does not answer by it yet: {trouble}")


def await_default(context: typer.Context, shoal: "Client", model: str) -> None:
    """Until requests that name no version go to the default that the Registry has now."""
    from shoal import names
    from shoal.registry.v1.registry_service_pb2 import GetModelRequest

    request = GetModelRequest(name=names.model_name(model))
    found = shoal.call(shoal.registry.GetModel, request).model
    if found.default_version and not found.HasField("traffic_policy"):
        await_router(context, shoal, model, "", found.default_version)


def _goes_to(shoal: "Client", model: str, asked: str) -> list[int]:
    """A version for each arm; none where nothing is known of it there."""
    from shoal.client import CallFailed
    from shoal.router.v1.router_service_pb2 import ExplainRouteRequest

    request = ExplainRouteRequest(model=model, version=asked)
    try:
        arms = shoal.call(shoal.router.ExplainRoute, request, timeout=WITHIN).arms
    except CallFailed as error:
        if error.code.name in ("NOT_FOUND", "FAILED_PRECONDITION"):
            return []
        raise
    return [arm.version for arm in arms]
