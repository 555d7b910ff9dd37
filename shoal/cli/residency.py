"""`shoal load`, `evict`, `pin`, `unpin`: moving versions in and out of memory by hand."""

from typing import Annotated

import typer

from shoal.cli.calling import calling
from shoal.cli.output import Document, JsonFlag, memory, message_json, print_json, seconds
from shoal.cli.units import UnitArgument, resource, server_of, short

Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.001, help="How long to wait until it is done.")
]


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
