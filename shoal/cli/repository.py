"""`shoal import`: register the models of a Triton model repository, or what has changed in it."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from shoal import names
from shoal.cli.connections import connected
from shoal.cli.failures import EXIT_REFUSED
from shoal.cli.imports import fetched_version, follow, source_text, start
from shoal.cli.output import Document, JsonFlag, message_json, print_json, printable
from shoal.cli.propagation import await_router
from shoal.cli.references import parse_reference, short

if TYPE_CHECKING:
    from shoal.client import Client

IMPORT_TIMEOUT: Final = 600.0  # seconds: a repository may hold thousands of models
SHOWN: Final = 5  # reasons for people; `shoal models` has the others


def import_(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A Triton model repository on the Registry's host, which is only read and served "
            "in place. Links in it are followed as far as they stay inside, unless `shoal up "
            "--repository` names it. Or a source that is fetched, such as s3://bucket/prefix.",
        ),
    ],
    json: JsonFlag = False,
) -> None:
    """Import a model repository: every version of every model in it is registered.

    Versions in place whose files or config have changed are taken over, and replicas of the old
    content are replaced. A version whose files are gone becomes INVALID.

    Exit status 1 where a version cannot be served, or where there is none.
    """
    with connected(context) as shoal:
        document = _fetch(shoal, source) if "://" in source else _in_place(shoal, source)
        usable = [one["name"] for one in document["versions"] if one["state"] != "INVALID"]
        if changed := [name for name in usable if name in set(document["changed"])]:
            # Changes reach the Router in order, so that the last one speaks for all.
            model, number = parse_reference(short(changed[-1]))
            await_router(context, shoal, model, number, int(number))
    if json:
        print_json(document)
    else:
        for line in _lines(document, len(usable)):
            print(printable(line))
    if not usable or len(usable) < len(document["versions"]):
        raise typer.Exit(EXIT_REFUSED)


def _in_place(shoal: "Client", path: str) -> Document:
    """Import a folder on the Registry's host. Raises CallFailed."""
    from shoal.registry.v1.registry_service_pb2 import ImportRepositoryRequest

    request = ImportRepositoryRequest(path=str(Path(path).expanduser().absolute()))
    reply = shoal.call(shoal.registry.ImportRepository, request, timeout=IMPORT_TIMEOUT)
    return {
        "versions": [message_json(one) for one in reply.versions],
        "changed": list(reply.changed),
        "problems": [message_json(one) for one in reply.problems],
    }


def _fetch(shoal: "Client", source: str) -> Document:
    """Import a source, and follow it to the end. Raises CallFailed."""
    started = start(shoal, names.model_name("-"), source)
    ended = [follow(shoal, one) for one in started["imports"]]
    made = [one["version"] for one in ended if one["version"]]
    failed = [
        {"path": source_text(one), "reason": one["reason"]} for one in ended if not one["version"]
    ]
    return {
        "versions": [fetched_version(shoal, name) for name in (*started["unchanged"], *made)],
        "changed": made,
        "problems": [*started["problems"], *failed],
    }


def _lines(document: Document, usable: int) -> Iterable[str]:
    changed = set(document["changed"])
    taken = [one for one in document["versions"] if one["state"] != "INVALID"]
    fresh = sum(one["name"] in changed for one in taken)
    yield f"imported {fresh}, unchanged {usable - fresh}"
    reasons = refusals(document["versions"], document["problems"])
    if reasons:
        yield f"refused {len(reasons)}:"
        yield from (f"  {reason}" for reason in reasons[:SHOWN])
    if len(reasons) > SHOWN:
        yield f"  and {len(reasons) - SHOWN} more: see `shoal models`"


def refusals(versions: Iterable[Document], problems: Iterable[Document]) -> list[str]:
    """Return one line for each version that cannot be served, and for what is no model.

    A version's own problem is said once, under the version's name.
    """
    invalid = {
        f"{short(one['name'])}: {one['invalid_reason']}": one["invalid_reason"]
        for one in versions
        if one["state"] == "INVALID"
    }
    told = set(invalid.values())
    return [
        *invalid,
        *(
            f"{one['path']}: {one['reason']}"
            for one in problems
            if f"{one['path']} cannot be served: {one['reason']}" not in told
        ),
    ]
