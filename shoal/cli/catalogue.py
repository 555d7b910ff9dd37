"""`shoal approve`, `reject`, `alias` and `traffic`: which version answers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final

import typer

from shoal import names
from shoal.cli.connections import connected
from shoal.cli.models import shares
from shoal.cli.output import Document, JsonFlag, message_json, print_json
from shoal.cli.propagation import await_default, await_router
from shoal.cli.references import (
    ModelArgument,
    VersionedArgument,
    parse_versioned,
    resource_name,
    short,
)

if TYPE_CHECKING:
    from shoal.client import Client

_ARMS_HELP: Final = (
    "TARGET is a version or an alias of MODEL, another model, or OTHER:VERSION. WEIGHT is a whole "
    "number, relative to the other weights."
)


def approve(context: typer.Context, version: VersionedArgument, json: JsonFlag = False) -> None:
    """Approve a version that is PENDING or REJECTED.

    Requests can then reach it. It becomes the default version if it is the highest approved one,
    unless the alias "default" names another.
    """
    from shoal.registry.v1.registry_service_pb2 import ApproveModelVersionRequest

    reference = parse_versioned(version)
    with connected(context) as shoal:
        request = ApproveModelVersionRequest(name=resource_name(shoal, version))
        reply = shoal.call(shoal.registry.ApproveModelVersion, request)
        await_default(context, shoal, reference.model)
    _show_version(message_json(reply.version), json)


def reject(context: typer.Context, version: VersionedArgument, json: JsonFlag = False) -> None:
    """Reject a version: requests for it are refused from then on.

    `shoal approve` undoes this.
    """
    from shoal.registry.v1.registry_service_pb2 import RejectModelVersionRequest

    reference = parse_versioned(version)
    with connected(context) as shoal:
        request = RejectModelVersionRequest(name=resource_name(shoal, version))
        reply = shoal.call(shoal.registry.RejectModelVersion, request)
        await_default(context, shoal, reference.model)
    _show_version(message_json(reply.version), json)


def alias(
    context: typer.Context,
    model: ModelArgument,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help='The alias. "default" is the version that answers when none is requested.',
        ),
    ],
    version: Annotated[
        int | None,
        typer.Argument(
            metavar="VERSION", min=1, show_default=False, help="The version, as a number."
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the alias.")] = False,
    json: JsonFlag = False,
) -> None:
    """Create or move an alias, a NAME that requests can use in place of a version.

    `shoal alias MODEL NAME VERSION` sets it, `shoal alias MODEL NAME --delete` deletes it.
    """
    from shoal.registry.v1 import registry_service_pb2 as registry

    if delete == (version is not None):
        raise typer.BadParameter("give either VERSION or --delete")
    full = names.alias_name(model, name)
    with connected(context) as shoal:
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
        print(f"{model} no longer has the alias {name}")
    else:
        print(f"{model}:{name} is version {version}")


def traffic(
    context: typer.Context,
    model: ModelArgument,
    arms: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET=WEIGHT", show_default=False, help=_ARMS_HELP),
    ] = None,
    clear: Annotated[
        bool,
        typer.Option(
            "--clear", help="Delete the traffic policy, so that the default version answers."
        ),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Split the requests for MODEL that name no version between several versions or models.

    For example, `shoal traffic MODEL 1=95 2=5` sends 95% of them to version 1 and 5% to version 2.
    """
    if clear == bool(arms):
        raise typer.BadParameter("give either TARGET=WEIGHT… or --clear")
    weights = [parse_arm(arm) for arm in arms or ()]
    with connected(context) as shoal:
        changed = _cleared(shoal, model) if clear else _split(shoal, model, weights)
    if json:
        print_json({"model": changed})
    elif clear:
        print(f"{model} has no traffic policy: version {changed['default_version']} answers")
    else:
        print(f"{model}: {shares(changed['traffic_policy'])}")


def parse_arm(text: str) -> tuple[str, int]:
    """Parse `TARGET=WEIGHT`. Raises typer.BadParameter."""
    target, _, weight = text.rpartition("=")
    if not target or not (weight.isascii() and weight.isdigit()):
        raise typer.BadParameter(f"{text!r} is not TARGET=WEIGHT, such as 2=5")
    return target, int(weight)


def target_name(model: str, target: str, aliases: Mapping[str, int]) -> str:
    """Return the resource name that a TARGET of `model`'s traffic policy stands for."""
    from shoal.client import resolve

    if target.startswith("models/"):
        return target
    return resolve.traffic_target(model, target, aliases)


def _split(shoal: "Client", model: str, weights: list[tuple[str, int]]) -> Document:
    from shoal.client import resolve
    from shoal.registry.v1.registry_service_pb2 import SetTrafficPolicyRequest

    aliases = shoal.perform(resolve.registered_model(model)).aliases
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
