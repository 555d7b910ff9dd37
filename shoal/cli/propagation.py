"""Waiting until the Router follows a change of the catalogue.

The change reaches the Router through the Controller, some milliseconds later. A request that a
script sends right after its command must not be answered by the state before the change.
"""

from typing import TYPE_CHECKING, Final

import typer

from shoal.cli.connections import addresses
from shoal.cli.failures import complain, described

if TYPE_CHECKING:
    from shoal.client import Client

WITHIN: Final = 5.0  # seconds


def await_router(
    context: typer.Context, shoal: "Client", model: str, requested: str, version: int | None
) -> None:
    """Wait until requests for a version of a model go to `version`, or nowhere where it is None.

    `requested` is the version or alias that the requests name, or "". The change itself is made, so
    a Router that does not follow it in time, or does not answer, is only complained about.
    """
    from shoal.client import CallFailed

    try:
        shoal.wait_for_route(model, requested, answers=version, within=WITHIN)
    except TimeoutError:
        trouble = "it has not heard of the change from the Controller"
    except CallFailed as error:
        trouble = described(error, addresses(context))
    else:
        return
    complain(f"the change is made, but the Router does not follow it yet: {trouble}")


def await_default(context: typer.Context, shoal: "Client", model: str) -> None:
    """Wait until requests that name no version go to the default version in the Registry."""
    from shoal.client import resolve

    found = shoal.perform(resolve.registered_model(model))
    if found.default_version and not found.HasField("traffic_policy"):
        await_router(context, shoal, model, "", found.default_version)
