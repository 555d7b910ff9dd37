"""What the Controller knows, as its messages say it."""

import time
from datetime import timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration

from services.controller.core.entities import Health, Replica, ReplicaKey, Server, Unit
from services.controller.core.fleet import Fleet
from services.controller.core.states import State
from services.controller.placements import SERVER_STATES
from shoal.controller.v1 import placement_pb2, types_pb2
from shoal.names import replica_name, server_name, version_name

STATES: Final[dict[State, types_pb2.ReplicaState.ValueType]] = {
    state: types_pb2.ReplicaState.Value(f"REPLICA_STATE_{state.name}")
    for state in State
    if state is not State.ABSENT
}


def server(fleet: Fleet, known: Server) -> types_pb2.Server:
    account = fleet.accounts[known.id]
    draining = known.health is Health.HEALTHY and known.draining
    return types_pb2.Server(
        name=server_name(known.id),
        address=known.address,
        state=types_pb2.SERVER_STATE_DRAINING if draining else SERVER_STATES[known.health],
        state_reason=known.draining if draining else known.reason,
        memory_budget=known.budget,
        memory_reserved=account.occupied,
        memory_measured=known.measured,
        memory_soft_limit=known.soft,
        memory_leaked=known.leaked,
        max_models=known.max_models,
        models=account.occupied_slots,
        labels=known.labels,
        restart_wanted=known.restart_wanted,
    )


def replica(fleet: Fleet, known: Replica) -> types_pb2.Replica:
    use = fleet.use(known.key)
    users = fleet.holders(known.unit, known.key.server)
    message = types_pb2.Replica(
        name=replica_name(known.key.server, *known.unit),
        version=version_name(*known.unit),
        state=STATES[known.state],
        state_reason=known.reason,
        memory_reserved=known.reserved,
        memory_measured=known.measured,
        in_flight=use.in_flight,
        pinned=known.unit in fleet.known.pinned,
        held_by=[version_name(*unit) for unit in sorted(users)],
    )
    message.idle.CopyFrom(_duration(max(0.0, time.monotonic() - use.last_used)))
    if known.load_seconds is not None:
        message.load_duration.CopyFrom(_duration(known.load_seconds))
    return message


def key(ref: placement_pb2.ReplicaRef) -> ReplicaKey:
    return ReplicaKey(ref.server, Unit(ref.model, ref.version))


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message
