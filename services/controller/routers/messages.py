"""Conversions between the messages of Routers' streams and the engine's events."""

from typing import Final

from services.controller.core import events as ev
from services.controller.core.entities import Health, ReplicaKey, Unit
from shoal.controller.v1 import placement_pb2, types_pb2

SERVER_STATES: Final = {
    Health.UNKNOWN: types_pb2.SERVER_STATE_UNKNOWN,
    Health.HEALTHY: types_pb2.SERVER_STATE_HEALTHY,
    Health.UNREACHABLE: types_pb2.SERVER_STATE_UNREACHABLE,
    Health.UNUSABLE: types_pb2.SERVER_STATE_UNUSABLE,
}


def replica_key(ref: placement_pb2.ReplicaRef) -> ReplicaKey:
    return ReplicaKey(ref.server, Unit(ref.model, ref.version))


def event(
    router: str, message: placement_pb2.WatchPlacementsRequest, epoch: int
) -> ev.Event | None:
    """Return what the message says of the Router.

    None where it says nothing to the engine, or where it is about a revision of another epoch.
    """
    match message.WhichOneof("message"):
        case "ack" if message.ack.revision.epoch == epoch:
            return ev.RouterAcked(router, message.ack.revision.number)
        case "drained" if message.drained.revision.epoch == epoch:
            drained = message.drained
            return ev.RouterDrained(router, replica_key(drained.replica), drained.revision.number)
        case "started":
            return ev.RouterStarted(router, message.started.use_lease)
        case "usage":
            return ev.RouterUsed(router, _usage(message.usage))
        case "broke":
            broke = message.broke
            earlier = replica_key(broke.earlier) if broke.HasField("earlier") else None
            return ev.RouterBroke(router, replica_key(broke.replica), earlier, broke.repeated)
    return None


def _usage(usage: placement_pb2.Usage) -> dict[ReplicaKey, ev.Usage]:
    return {
        replica_key(row.replica): ev.Usage(
            row.age.ToTimedelta().total_seconds(), row.in_flight, row.requests, row.sequences
        )
        for row in usage.replicas
    }
