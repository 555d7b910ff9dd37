"""`shoal load`, `evict`, `pin`, `unpin`: moving versions in and out of memory by hand; `shoal
residency`: what a model asks of the fleet, which moves them without a hand."""

import enum
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal import names
from shoal.cli.calling import calling
from shoal.cli.output import (
    Document,
    JsonFlag,
    give,
    memory,
    message_json,
    print_json,
    seconds,
    table,
)
from shoal.cli.units import UnitArgument, resource, server_of, short

if TYPE_CHECKING:
    from rich.console import RenderableType

Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.001, help="How long to wait until it is done.")
]


_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Setting(enum.StrEnum):
    """What --unset takes; the names of the options that set it."""

    MIN_COPIES = "min-copies"
    MAX_COPIES = "max-copies"
    IDLE_TTL = "idle-ttl"
    PRELOAD = "preload"
    PRIORITY = "priority"
    REQUIRE = "require"

    @property
    def field(self) -> str:
        """In shoal.registry.v1.Residency."""
        return "required_labels" if self is Setting.REQUIRE else self.replace("-", "_")


def load(
    context: typer.Context, model: UnitArgument, timeout: Timeout = 300.0, json: JsonFlag = False
) -> None:
    """Make a version resident now, rather than with the first request for it."""
    from shoal.controller.v1.controller_service_pb2 import LoadModelRequest

    with calling(context) as shoal:
        request = LoadModelRequest(name=resource(shoal, model))
        reply = shoal.call(shoal.controller.LoadModel, request, timeout=timeout)
    _show_replica(message_json(reply.replica), json)


def evict(
    context: typer.Context, model: UnitArgument, timeout: Timeout = 120.0, json: JsonFlag = False
) -> None:
    """Take a version, or all versions of a model, out of memory on every server.

    What is in flight is answered first. A later request loads it again.
    """
    from shoal.controller.v1.controller_service_pb2 import EvictModelRequest

    with calling(context) as shoal:
        request = EvictModelRequest(name=resource(shoal, model))
        reply = shoal.call(shoal.controller.EvictModel, request, timeout=timeout)
    if json:
        print_json(message_json(reply))
        return
    for name in reply.evicted:
        print(f"evicted {short(name)} from {server_of(name)}")
    if not reply.evicted:
        print(f"{model} was not resident")


def pin(
    context: typer.Context, model: UnitArgument, timeout: Timeout = 300.0, json: JsonFlag = False
) -> None:
    """Load a version and never evict it, until it is unpinned."""
    from shoal.controller.v1.controller_service_pb2 import PinModelRequest

    with calling(context) as shoal:
        request = PinModelRequest(name=resource(shoal, model))
        reply = shoal.call(shoal.controller.PinModel, request, timeout=timeout)
    _show_replica(message_json(reply.replica), json)


def unpin(
    context: typer.Context, model: UnitArgument, timeout: Timeout = 30.0, json: JsonFlag = False
) -> None:
    """Let a pinned version be evicted again when room is needed."""
    from shoal.controller.v1.controller_service_pb2 import UnpinModelRequest

    with calling(context) as shoal:
        request = UnpinModelRequest(name=resource(shoal, model))
        reply = shoal.call(shoal.controller.UnpinModel, request, timeout=timeout)
    if json:
        print_json(message_json(reply))
    else:
        print(f"{model} is not pinned")


def _show_replica(replica: Document, as_json: bool) -> None:
    if as_json:
        print_json({"replica": replica})
        return
    facts = [
        f"{short(replica['name'])} is {replica['state']} on {server_of(replica['name'])}",
        f"loaded in {seconds(replica['load_duration'])}" if replica["load_duration"] else "",
        f"reserved {memory(replica['memory_reserved'])}" if replica["memory_reserved"] else "",
        "pinned" if replica["pinned"] else "",
    ]
    print(", ".join(filter(None, facts)).replace("\n", ", "))


# --- what a model asks of the fleet ---------------------------------------------------------------


def residency(
    context: typer.Context,
    model: str,
    min_copies: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Replicas of its default version that are always kept."),
    ] = None,
    max_copies: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Replicas of one version at most.")
    ] = None,
    idle_ttl: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Evict it when not used for so long, such as 90s, 10m or 1h30m; 0: never for that "
            "reason.",
        ),
    ] = None,
    preload: Annotated[
        bool | None,
        typer.Option(
            "--preload/--no-preload", help="Load its default version when a Controller starts."
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(min=-10, max=10, help="Of its loads among other models', the higher first."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=VALUE",
            help="Only servers that have all of these labels hold it. Replaces those set before.",
        ),
    ] = None,
    unset: Annotated[
        list[Setting] | None,
        typer.Option(
            metavar="SETTING",
            help=f"Back to the Controller's own: {', '.join(Setting)}. Can be repeated.",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Set what MODEL asks of the fleet, or without an option show it.

    What is not named stays as it is.
    """
    from shoal.registry.v1 import registry_service_pb2 as registry

    given: dict[str, Any] = {
        "min_copies": min_copies,
        "max_copies": max_copies,
        "idle_ttl": None if idle_ttl is None else parse_duration(idle_ttl),
        "preload": preload,
        "priority": priority,
        "required_labels": dict(map(parse_label, require)) if require else None,
    }
    update = _update({name: value for name, value in given.items() if value is not None}, unset)
    name = names.model_name(model)
    with calling(context) as shoal:
        if update.update_mask.paths:
            update.model.name = name
            found = shoal.call(shoal.registry.UpdateModel, update).model
        else:
            found = shoal.call(shoal.registry.GetModel, registry.GetModelRequest(name=name)).model
    give({"model": message_json(found)}, _residency_table, json)


def parse_duration(text: str) -> float:
    """Seconds in `10m`, `1h30m`, `500ms`, or in a bare number. Raises typer.BadParameter."""
    parts = _DURATION.findall(text)
    if text and "".join(map("".join, parts)) == text:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    raise typer.BadParameter(f"{text!r} is not a duration, such as 90s, 10m, 1h30m or 0")


def parse_label(text: str) -> tuple[str, str]:
    """`LABEL=VALUE`, taken apart. Raises typer.BadParameter."""
    label, _, value = text.partition("=")
    if not label or not value:
        raise typer.BadParameter(f"{text!r} is not LABEL=VALUE, such as gpu=a100")
    return label, value


def set_values(residency: Document | None) -> dict[str, str]:
    """What is set of a model's residency, for people."""
    if residency is None:
        return {}
    shown = {
        "min copies": residency["min_copies"],
        "max copies": residency["max_copies"],
        "idle ttl": _ttl(residency["idle_ttl"]),
        "preload": {True: "yes", False: "no"}.get(residency["preload"]),
        "priority": residency["priority"],
        "requires": _labels(residency["required_labels"]),
    }
    return {name: str(value) for name, value in shown.items() if value is not None}


def _update(given: dict[str, Any], unset: Collection[Setting] | None) -> Any:
    """The UpdateModelRequest, still without the model's name. Raises typer.BadParameter."""
    from shoal.registry.v1.registry_service_pb2 import UpdateModelRequest

    cleared = {setting.field: setting for setting in unset or ()}
    if twice := [setting.value for field, setting in cleared.items() if field in given]:
        raise typer.BadParameter(f"{twice[0]} is both given and unset")
    request = UpdateModelRequest()
    for name, value in given.items():
        if name == "idle_ttl":
            request.model.residency.idle_ttl.FromMicroseconds(round(value * 1e6))
        elif name == "required_labels":
            request.model.residency.required_labels.update(value)
        else:
            setattr(request.model.residency, name, value)
    request.update_mask.paths.extend(f"residency.{name}" for name in (*given, *cleared))
    return request


def _residency_table(document: Document) -> "RenderableType":
    values = set_values(document["model"]["residency"])
    return table(("setting", "value"), [(name, values.get(name, "not set")) for name in _SHOWN])


_SHOWN: Final = ("min copies", "max copies", "idle ttl", "preload", "priority", "requires")


def _ttl(value: float | None) -> str | None:
    return "never" if value == 0 else seconds(value) or None


def _labels(labels: dict[str, str]) -> str | None:
    return ", ".join(f"{label}={value}" for label, value in labels.items()) or None
