"""`shoal approve`, `reject`, `alias`, `traffic`: which version answers."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Final

import typer

from shoal import names
from shoal.cli.calling import calling
from shoal.cli.models import shares
from shoal.cli.output import Document, JsonFlag, message_json, print_json
from shoal.cli.settling import await_default, await_router
from shoal.cli.units import VersionedArgument, aliases_of, parse_versioned, resource, short

if TYPE_CHECKING:
    from shoal.client import Client

_POLICY_HELP: Final = (
    "TARGET is a version or an alias of MODEL, another model, or OTHER:VERSION; WEIGHT a whole "
    "number, relative to the others'."
)


def approve(context: typer.Context, version: VersionedArgument, json: JsonFlag = False) -> None:
    """Let a PENDING or REJECTED version answer, and be the default if it is the highest."""
    from shoal.registry.v1.registry_service_pb2 import ApproveModelVersionRequest

    unit = parse_versioned(version)
    with calling(context) as shoal:
        request = ApproveModelVersionRequest(name=resource(shoal, version))
        reply = shoal.call(shoal.registry.ApproveModelVersion, request)
        await_default(context, shoal, unit.model)
    _show_version(message_json(reply.version), json)


def reject(context: typer.Context, version: VersionedArgument, json: JsonFlag = False) -> None:
    """Let a version answer no more."""
    from shoal.registry.v1.registry_service_pb2 import RejectModelVersionRequest

    unit = parse_versioned(version)
    with calling(context) as shoal:
        request = RejectModelVersionRequest(name=resource(shoal, version))
        reply = shoal.call(shoal.registry.RejectModelVersion, request)
        await_default(context, shoal, unit.model)
    _show_version(message_json(reply.version), json)


def alias(
    context: typer.Context,
    model: str,
    name: Annotated[str, typer.Argument(help='"default" is what answers when none is asked for.')],
    version: Annotated[int | None, typer.Argument(min=1, show_default=False)] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias.")] = False,
    json: JsonFlag = False,
) -> None:
    """Give a version of MODEL a NAME that clients can ask for as its version."""
    from shoal.registry.v1 import registry_service_pb2 as registry

    if delete == (version is not None):
        raise typer.BadParameter("give either VERSION or --delete")
    full = f"models/{model}/aliases/{name}"
    with calling(context) as shoal:
        if version is None:
            removal = registry.DeleteAliasRequest(name=full)
            changed = shoal.call(shoal.registry.DeleteAlias, removal).model
        else:
            setting = registry.SetAliasRequest(name=full, version=version)
            changed = shoal.call(shoal.registry.SetAlias, setting).model
            await_router(context, shoal, model, name, version)
    if json:
        print_json({"model": message_json(changed)})
    elif delete:
        print(f"{model} has no alias {name} any more")
    else:
        print(f"{model}:{name} is version {version}")


def traffic(
    context: typer.Context,
    model: str,
    arms: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET=WEIGHT...", show_default=False, help=_POLICY_HELP),
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Back to the default version alone.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Share out the requests for MODEL that name no version, such as `1=95 2=5`."""
    if clear == bool(arms):
        raise typer.BadParameter("give either TARGET=WEIGHT… or --clear")
    weights = [parse_arm(arm) for arm in arms or ()]
    with calling(context) as shoal:
        changed = _cleared(shoal, model) if clear else _split(shoal, model, weights)
    if json:
        print_json({"model": changed})
    elif clear:
        print(f"{model} has no traffic policy: version {changed['default_version']} answers")
    else:
        print(f"{model}: {shares(changed['traffic_policy'])}")


def parse_arm(text: str) -> tuple[str, int]:
    """`TARGET=WEIGHT`, taken apart. Raises typer.BadParameter."""
    target, _, weight = text.rpartition("=")
    if not target or not (weight.isascii() and weight.isdigit()):
        raise typer.BadParameter(f"{text!r} is not TARGET=WEIGHT, such as 2=5")
    return target, int(weight)


def target_name(model: str, target: str, aliases: Collection[str]) -> str:
    """The resource name that a TARGET of `model`'s policy means."""
    if target.startswith("models/"):
        return target
    other, colon, version = target.partition(":")
    if colon:
        kind = "aliases" if names.is_alias(version) else "versions"
        return f"models/{other}/{kind}/{version}"
    if names.parse_version(target) is not None:
        return f"models/{model}/versions/{target}"
    return f"models/{model}/aliases/{target}" if target in aliases else f"models/{target}"


def _split(shoal: "Client", model: str, weights: list[tuple[str, int]]) -> Document:
    from shoal.registry.v1.registry_service_pb2 import SetTrafficPolicyRequest

    aliases = aliases_of(shoal, model)
    request = SetTrafficPolicyRequest()
    request.traffic_policy.name = names.policy_name(model)
    for target, weight in weights:
        request.traffic_policy.arms.add(target=target_name(model, target, aliases), weight=weight)
    return message_json(shoal.call(shoal.registry.SetTrafficPolicy, request).model)


def _cleared(shoal: "Client", model: str) -> Document:
    from shoal.registry.v1.registry_service_pb2 import DeleteTrafficPolicyRequest

    request = DeleteTrafficPolicyRequest(name=names.policy_name(model))
    return message_json(shoal.call(shoal.registry.DeleteTrafficPolicy, request).model)


def _show_version(version: Document, as_json: bool) -> None:
    if as_json:
        print_json({"version": version})
    else:
        print(f"{short(version['name'])} is {version['state']}")
