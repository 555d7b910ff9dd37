"""What the residency engine finds when it checks itself, as a message."""

import time

from services.controller.core.residency import Engine
from shoal.controller.v1 import controller_service_pb2 as wire


def of(engine: Engine) -> wire.GetDiagnosticsResponse:
    """Have the engine check itself, and return what it found and what it did last."""
    epoch = time.time() - time.monotonic()
    response = wire.GetDiagnosticsResponse(violations=engine.check(), counts=_counts(engine))
    for line in engine.history.lines():
        event = response.events.add(event=line.event, instructions=line.instructions)
        event.time.FromNanoseconds(round((line.now + epoch) * 1e9))
    return response


def _counts(engine: Engine) -> wire.EngineCounts:
    fleet = engine.fleet
    return wire.EngineCounts(
        events=engine.history.events,
        servers=len(fleet.servers),
        versions=len(fleet.known.specs),
        replicas=sum(map(len, fleet.replicas.values())),
        wants=len(fleet.wants.by_unit),
        waiters=len(fleet.wants.asked),
        routers=len(fleet.withdrawals.routers),
        drains=len(fleet.withdrawals.drains),
        leased_replicas=len(fleet.withdrawals.use_leases),
        failures=len(fleet.failures.by_unit),
    )
