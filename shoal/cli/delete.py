"""`shoal delete`: remove a version, or a whole model, from the Registry."""

from typing import Annotated

import typer

from shoal import names
from shoal.cli.connections import connected
from shoal.cli.output import JsonFlag, print_json
from shoal.cli.propagation import await_router
from shoal.cli.references import ReferenceArgument, resource_name, short


def delete(
    context: typer.Context,
    model: ReferenceArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    json: JsonFlag = False,
) -> None:
    """Delete a version, or a model with all its versions, from the Registry.

    The files that it was registered from stay where they are. A repository that the Registry
    imports when it starts brings back whatever is still in it.
    """
    from shoal.registry.v1 import registry_service_pb2 as registry

    with connected(context) as shoal:
        name = resource_name(shoal, model)
        version = names.parse_version_name(name)
        what = f"version {short(name)}" if ":" in model else f"model {model} with all its versions"
        if not yes:
            typer.confirm(f"Delete {what}?", abort=True, err=True)
        if ":" in model:
            shoal.call(
                shoal.registry.DeleteModelVersion, registry.DeleteModelVersionRequest(name=name)
            )
        else:
            shoal.call(shoal.registry.DeleteModel, registry.DeleteModelRequest(name=name))
        requested = str(version.version) if version else ""
        await_router(context, shoal, version.model if version else model, requested, None)
    if json:
        print_json({"deleted": name})
    else:
        print(f"deleted {short(name)}")
