"""`shoal load`, `evict`, `pin` and `unpin`: moving versions into and out of memory by hand."""

from typing import Annotated

import typer

from shoal.cli.connections import connected
from shoal.cli.output import Document, JsonFlag, memory, message_json, print_json, seconds
from shoal.cli.references import ReferenceArgument, resource_name, server_of, short

Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.001, help="Time to wait until it is done.")
]


def load(
    context: typer.Context,
    model: ReferenceArgument,
    timeout: Timeout = 300.0,
    json: JsonFlag = False,
) -> None:
    """Load a version now, rather than with the first request for it.

    Without VERSION, this is the model's default version.
    """
    from shoal.controller.v1.controller_service_pb2 import LoadModelRequest

    with connected(context) as shoal:
        request = LoadModelRequest(name=resource_name(shoal, model))
        reply = shoal.call(shoal.controller.LoadModel, request, timeout=timeout)
    _show_replica(message_json(reply.replica), json)


def evict(
    context: typer.Context,
    model: ReferenceArgument,
    timeout: Timeout = 120.0,
    json: JsonFlag = False,
) -> None:
    """Unload a version, or all versions of a model, from every server.

    Requests in flight are answered first, and a later request loads it again. A version that is
    pinned, or that a resident ensemble needs, cannot be evicted.
    """
    from shoal.controller.v1.controller_service_pb2 import EvictModelRequest

    with connected(context) as shoal:
        request = EvictModelRequest(name=resource_name(shoal, model))
        reply = shoal.call(shoal.controller.EvictModel, request, timeout=timeout)
    if json:
        print_json(message_json(reply))
        return
    for name in reply.evicted:
        print(f"evicted {short(name)} from {server_of(name)}")
    if not reply.evicted:
        print(f"{model} was not resident")


def pin(
    context: typer.Context,
    model: ReferenceArgument,
    timeout: Timeout = 300.0,
    json: JsonFlag = False,
) -> None:
    """Load a version, and keep it in memory until `shoal unpin`.

    Without VERSION, this is the model's default version.
    """
    from shoal.controller.v1.controller_service_pb2 import PinModelRequest

    with connected(context) as shoal:
        request = PinModelRequest(name=resource_name(shoal, model))
        reply = shoal.call(shoal.controller.PinModel, request, timeout=timeout)
    _show_replica(message_json(reply.replica), json)


def unpin(
    context: typer.Context,
    model: ReferenceArgument,
    timeout: Timeout = 30.0,
    json: JsonFlag = False,
) -> None:
    """Allow a pinned version to be evicted again when room is needed.

    Without VERSION, this is the model's default version.
    """
    from shoal.controller.v1.controller_service_pb2 import UnpinModelRequest

    with connected(context) as shoal:
        request = UnpinModelRequest(name=resource_name(shoal, model))
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
