"""`shoal residency`: what a model asks of the fleet, such as copies that are always kept."""

import enum
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal import names
from shoal.cli.connections import connected
from shoal.cli.output import Document, JsonFlag, give, message_json, seconds, table
from shoal.cli.references import ModelArgument

if TYPE_CHECKING:
    from rich.console import RenderableType

_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Setting(enum.StrEnum):
    """The settings that --unset takes, named like the options that set them."""

    MIN_COPIES = "min-copies"
    MAX_COPIES = "max-copies"
    IDLE_TTL = "idle-ttl"
    PRELOAD = "preload"
    PRIORITY = "priority"
    REQUIRE = "require"

    @property
    def field(self) -> str:
        """The field of shoal.registry.v1.Residency."""
        return "required_labels" if self is Setting.REQUIRE else self.replace("-", "_")


def residency(
    context: typer.Context,
    model: ModelArgument,
    min_copies: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=1000,
            help="Always keep this many replicas of its default version.",
        ),
    ] = None,
    max_copies: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=1000, help="Have at most this many replicas of one version."
        ),
    ] = None,
    idle_ttl: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Evict a replica after this time without use, such as 90s, 10m or 1h30m. 0 means "
            "never for that reason.",
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
        typer.Option(
            metavar="N",
            min=-10,
            max=10,
            help="Priority of its loads among those of other models. Higher priorities come first.",
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=VALUE",
            help="Place it only on servers with this label. Can be repeated. Replaces all labels "
            "that were required before.",
        ),
    ] = None,
    unset: Annotated[
        list[Setting] | None,
        typer.Option(
            metavar="SETTING",
            help=f"Return to the Controller's own setting: {', '.join(Setting)}. Can be repeated.",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Show what MODEL asks of the fleet, or change it.

    Settings that are not named stay as they are.
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
    with connected(context) as shoal:
        if update.update_mask.paths:
            update.model.name = name
            found = shoal.call(shoal.registry.UpdateModel, update).model
        else:
            found = shoal.call(shoal.registry.GetModel, registry.GetModelRequest(name=name)).model
    give({"model": message_json(found)}, _residency_table, json)


def parse_duration(text: str) -> float:
    """Return the seconds in `10m`, `1h30m`, `500ms` or a number. Raises typer.BadParameter."""
    parts = _DURATION.findall(text)
    if text and "".join(map("".join, parts)) == text:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    raise typer.BadParameter(f"{text!r} is not a duration, such as 90s, 10m, 1h30m or 0")


def parse_label(text: str) -> tuple[str, str]:
    """Parse `LABEL=VALUE`. Raises typer.BadParameter."""
    label, _, value = text.partition("=")
    if not label or not value:
        raise typer.BadParameter(f"{text!r} is not LABEL=VALUE, such as gpu=a100")
    return label, value


def set_values(residency: Document | None) -> dict[str, str]:
    """Return the settings of a model's residency that are set, for people."""
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
    """Return an UpdateModelRequest without the model's name. Raises typer.BadParameter."""
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
