"""`shoal import`: register the models of a Triton model repository, or what has changed in it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer

from shoal.cli.connections import connected
from shoal.cli.failures import EXIT_REFUSED
from shoal.cli.output import Document, JsonFlag, message_json, print_json, printable
from shoal.cli.propagation import await_router
from shoal.cli.references import parse_reference, short

IMPORT_TIMEOUT: Final = 600.0  # seconds: a repository may hold thousands of models
SHOWN: Final = 5  # reasons for people; `shoal models` has the others


def import_(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A Triton model repository on the Registry's host. It is only read. Links in it "
            "are followed as far as they stay inside, unless `shoal up --repository` names it.",
        ),
    ],
    json: JsonFlag = False,
) -> None:
    """Import a model repository: every version of every model in it is registered.

    Versions whose files or config have changed are taken over, and replicas of the old content are
    replaced. A version whose files are gone becomes INVALID.

    Exit status 1 where a version cannot be served, or where there is none.
    """
    from shoal.registry.v1.registry_service_pb2 import ImportRepositoryRequest

    request = ImportRepositoryRequest(path=str(path.expanduser().absolute()))
    with connected(context) as shoal:
        reply = shoal.call(shoal.registry.ImportRepository, request, timeout=IMPORT_TIMEOUT)
        document: Document = {
            "versions": [message_json(one) for one in reply.versions],
            "changed": list(reply.changed),
            "problems": [message_json(one) for one in reply.problems],
        }
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
