"""`shoal delete`: a version, or a whole model, that is to exist no more."""

from typing import Annotated

import typer

from shoal import names
from shoal.cli.calling import calling
from shoal.cli.output import JsonFlag, print_json
from shoal.cli.settling import await_router
from shoal.cli.units import UnitArgument, resource, short


def delete(
    context: typer.Context,
    model: UnitArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Delete a version, or a model with all its versions, from the Registry.

    The files that it was registered from stay where they are; a repository that is imported at the
    Registry's start brings back what is still in it.
    """
    from shoal.registry.v1 import registry_service_pb2 as registry

    with calling(context) as shoal:
        name = resource(shoal, model)
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
        asked = str(version.version) if version else ""
        await_router(context, shoal, version.model if version else model, asked, None)
    if json:
        print_json({"deleted": name})
    else:
        print(f"deleted {short(name)}")
