"""`shoal models`: which models are registered, and which versions are in memory."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from shoal.cli.connections import addresses, connected
from shoal.cli.failures import complain, described
from shoal.cli.output import Document, JsonFlag, give, memory, message_json, table
from shoal.cli.references import server_of, short, version_of
from shoal.cli.replicas import read as read_replicas
from shoal.cli.residency import set_values

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.client import Client

_LEARNED: Final = {"CODE": " (named in its code)", "CALL": " (learned from a call)"}
_HEADINGS: Final = ("model", "version", "state", "resident", "memory", "notes")
_PROBLEMS: Final = ("not imported", "because")


def models(
    context: typer.Context,
    filter: Annotated[  # noqa: A002
        str,
        typer.Option(
            help="Show only models that match, such as 'labels.team = search AND format = onnx'. "
            "There are name, labels.KEY, state, format and source.",
            show_default=False,
        ),
    ] = "",
    order_by: Annotated[
        str,
        typer.Option(
            help="name, create_time or update_time, and ' desc' for the opposite order.",
            show_default=False,
        ),
    ] = "",
    json: JsonFlag = False,
) -> None:
    """List the registered models and versions, and the servers that hold them in memory.

    The version marked * is the default: it answers when none is requested. Memory is what was
    learned while the version ran, else what was declared when it was registered. What could not be
    imported from a repository at all comes last, with the reason.
    """
    from shoal.client import CallFailed

    with connected(context) as shoal:
        document = read(shoal, filter, order_by)
        try:
            _place(document, read_replicas(shoal, "")["replicas"])
        except CallFailed as error:
            complain(f"cannot tell what is resident: {described(error, addresses(context))}")
    give(document, model_table, json)


def read(shoal: "Client", filter: str = "", order_by: str = "") -> Document:  # noqa: A002
    """Return `{"models": […], "problems": […]}`, each model with its `versions`.

    Each version has `memory`, `memory_source` (learned, declared or unknown), `has_probe` and
    `replicas`, which are null until they are known. `problems` are paths that could not be
    imported, each with its `reason`. Raises CallFailed.
    """
    from shoal.registry.v1 import registry_service_pb2 as registry

    stub = shoal.registry
    learned = {
        (one.version, one.config_digest): dict(one.memory)
        for page in shoal.pages(stub.ListFootprints, registry.ListFootprintsRequest())
        for one in page.footprints
    }
    versions = [
        {**_version(message_json(one), learned), "has_probe": bool(one.probe)}
        for page in shoal.pages(
            stub.ListModelVersions, registry.ListModelVersionsRequest(parent="models/-")
        )
        for one in page.versions
    ]
    asked = registry.ListModelsRequest(filter=filter, order_by=order_by)
    found = [
        message_json(one) for page in shoal.pages(stub.ListModels, asked) for one in page.models
    ]
    for model in found:
        prefix = f"{model['name']}/versions/"
        model["versions"] = [one for one in versions if one["name"].startswith(prefix)]
    problems = [
        message_json(one)
        for page in shoal.pages(stub.ListImportProblems, registry.ListImportProblemsRequest())
        for one in page.problems
    ]
    return {"models": found, "problems": problems}


def _version(version: Document, learned: Mapping[tuple[str, str], dict[str, int]]) -> Document:
    size, source = learned.get((version["name"], version["config_digest"])), "learned"
    if not size:
        size, source = version["declared_memory"], "declared"
    return {
        **version,
        "memory": size,
        "memory_source": source if size else "unknown",
        "replicas": None,
    }


def _place(document: Document, replicas: Sequence[Document]) -> None:
    for model in document["models"]:
        for version in model["versions"]:
            version["replicas"] = [one for one in replicas if one["version"] == version["name"]]


def model_table(document: Document) -> "RenderableType":
    from rich.console import Group

    rows = [
        _row(model, version)
        for model in document["models"]
        for version in model["versions"] or [None]
    ]
    problems = [(one["path"], one["reason"]) for one in document["problems"]]
    if not problems:
        return table(_HEADINGS, rows)
    return Group(table(_HEADINGS, rows), "", table(_PROBLEMS, problems))


def _row(model: Document, version: Document | None) -> tuple[str, ...]:
    name = short(model["name"])
    if version is None:
        return (name, "none", "", "", "", "; ".join(_model_notes(model)))
    number = version_of(version["name"])
    default = "*" if number == model["default_version"] else ""
    return (
        name,
        f"{number}{default}",
        version["state"],
        _resident(version["replicas"]),
        memory(version["memory"]),
        "; ".join(_notes(model, version, number)),
    )


def _resident(replicas: list[Document] | None) -> str:
    if replicas is None:
        return "?"
    return ", ".join(
        server_of(one["name"]) + ("" if one["state"] == "READY" else f" ({one['state']})")
        for one in replicas
    )


def _needs(version: Document) -> list[str]:
    learned = {one["version"]: _LEARNED.get(one["source"], "") for one in version["requirements"]}
    return [short(name) + learned.get(name, "") for name in version["requires"]]


def _notes(model: Document, version: Document, number: int) -> list[str]:
    found = [f"alias {alias}" for alias, target in model["aliases"].items() if target == number]
    if version is model["versions"][0]:
        found += _model_notes(model)
    if version["pinned"]:
        found.append("pinned")
    if version["has_probe"]:
        found.append("probe")
    if version["memory_source"] == "declared":
        found.append("memory declared")
    if version["requires"]:
        found.append(f"needs {', '.join(_needs(version))}")
    found += filter(None, (version["invalid_reason"], version["waiting_reason"]))
    return found


def _model_notes(model: Document) -> list[str]:
    found = [f"{name} {value}" for name, value in set_values(model["residency"]).items()]
    if model["traffic_policy"]:
        found.append(f"traffic {shares(model['traffic_policy'])}")
    return found


def shares(policy: Document) -> str:
    """Describe the arms of a traffic policy with their shares, for people."""
    total = sum(arm["weight"] for arm in policy["arms"])
    return ", ".join(
        f"{100 * arm['weight'] / total:.3g}% to {short(arm['target'])}" for arm in policy["arms"]
    )
