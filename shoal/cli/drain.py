"""`shoal drain` and `undrain`: emptying a server by hand, to restart or to remove it."""

from typing import Annotated

import typer

from shoal import names
from shoal.cli.connections import connected
from shoal.cli.output import Document, JsonFlag, counted, message_json, print_json
from shoal.cli.references import short

Server = Annotated[
    str,
    typer.Argument(metavar="SERVER", help="Name of the server; `shoal status` lists them."),
]


def drain(
    context: typer.Context,
    server: Server,
    restart: Annotated[
        bool, typer.Option("--restart", help="Restart the server once it is empty.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Drain SERVER: give it no new models, and unload those that it holds.

    A model in use is loaded on another server first where there is room, and requests in flight are
    answered. A server that is not restarted stays drained until `shoal undrain`.
    """
    from shoal.controller.v1.controller_service_pb2 import DrainServerRequest

    with connected(context) as shoal:
        request = DrainServerRequest(name=names.server_name(server), restart=restart)
        reply = shoal.call(shoal.controller.DrainServer, request)
    _show(message_json(reply.server), json)


def undrain(context: typer.Context, server: Server, json: JsonFlag = False) -> None:
    """Undo a drain: SERVER can be given models again."""
    from shoal.controller.v1.controller_service_pb2 import UndrainServerRequest

    with connected(context) as shoal:
        request = UndrainServerRequest(name=names.server_name(server))
        reply = shoal.call(shoal.controller.UndrainServer, request)
    _show(message_json(reply.server), json)


def _show(server: Document, as_json: bool) -> None:
    if as_json:
        print_json({"server": server})
        return
    why = f" ({server['state_reason']})" if server["state_reason"] else ""
    held = counted(server["models"], "model")
    print(f"{short(server['name'])} is {server['state']}{why}, {held} on it")
