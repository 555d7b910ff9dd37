"""`shoal drain`, `undrain`: emptying a server by hand, to restart or to remove it."""

from typing import Annotated

import typer

from shoal import names
from shoal.cli.calling import calling
from shoal.cli.output import Document, JsonFlag, message_json, print_json
from shoal.cli.units import short

Server = Annotated[str, typer.Argument(metavar="SERVER", help="As `shoal status` names it.")]


def drain(
    context: typer.Context,
    server: Server,
    restart: Annotated[
        bool, typer.Option("--restart", help="Have it restarted once it is empty.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Give SERVER nothing new, and have its replicas leave.

    What is in use is loaded elsewhere first where there is room, and what is in flight is answered.
    A server that is not restarted stays drained until `shoal undrain`.
    """
    from shoal.controller.v1.controller_service_pb2 import DrainServerRequest

    with calling(context) as shoal:
        request = DrainServerRequest(name=names.server_name(server), restart=restart)
        reply = shoal.call(shoal.controller.DrainServer, request)
    _show(message_json(reply.server), json)


def undrain(context: typer.Context, server: Server, json: JsonFlag = False) -> None:
    """Take a drain back: SERVER may be given new models again."""
    from shoal.controller.v1.controller_service_pb2 import UndrainServerRequest

    with calling(context) as shoal:
        request = UndrainServerRequest(name=names.server_name(server))
        reply = shoal.call(shoal.controller.UndrainServer, request)
    _show(message_json(reply.server), json)


def _show(server: Document, as_json: bool) -> None:
    if as_json:
        print_json({"server": server})
        return
    why = f" ({server['state_reason']})" if server["state_reason"] else ""
    print(f"{short(server['name'])} is {server['state']}{why}, {server['models']} models on it")
