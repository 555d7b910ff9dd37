"""The number of bytes to set aside for a unit: declared, learned, or guessed."""

from typing import Final

from services.controller.core import memory
from services.controller.core.entities import Replica, UnitSpec
from services.controller.core.limits import Limits
from services.controller.core.memory import NOTHING, Memory

ARTIFACT_FACTOR: Final = 3  # a runtime holds the file, its parsed form and its workspace


def reservation(spec: UnitSpec, budget: Memory, limits: Limits) -> Memory:
    """Bytes to set aside before `spec` is loaded on a server with `budget`."""
    if spec.ensemble:
        return NOTHING
    if spec.declared:
        return memory.highest(spec.declared, spec.learned) if spec.learned else spec.declared
    if spec.learned:
        return memory.scaled(spec.learned, limits.margin)
    return {
        resource: max(
            min(ARTIFACT_FACTOR * spec.artifact_bytes, limit),
            round(limits.unknown_share * limit),
            spec.artifact_bytes,
        )
        for resource, limit in budget.items()
    }


def certain(spec: UnitSpec, budget: Memory, limits: Limits) -> Memory:
    """Bytes that the unit takes at least. A guess must not rule a unit out: only what was declared
    or learned, or lies on disk, may."""
    if spec.size_known:
        return reservation(spec, budget, limits)
    return dict.fromkeys(budget, spec.artifact_bytes)


def reservation_of_resident(replica: Replica, spec: UnitSpec, limits: Limits) -> Memory:
    """Bytes that a READY replica counts for once some of it has been measured."""
    if spec.ensemble or not replica.measured:
        return replica.reserved
    if spec.declared:
        return memory.highest(spec.declared, replica.measured)
    if spec.learned:
        return memory.scaled(memory.highest(spec.learned, replica.measured), limits.margin)
    return memory.scaled(replica.measured, limits.growth)
