"""The number of bytes to set aside for a unit: declared, learned, or guessed."""

from typing import Final

from services.controller.core import memory
from services.controller.core.entities import Replica, UnitSpec
from services.controller.core.limits import Limits
from services.controller.core.memory import NOTHING, Memory

ARTIFACT_FACTOR: Final = 3  # a runtime holds the file, its parsed form and its workspace


def reservation(spec: UnitSpec, budget: Memory, limits: Limits) -> Memory:
    """Bytes to set aside before `spec` is loaded on a server with `budget`. A guess covers the
    files for each instance, and what the unit is expected to take."""
    if spec.ensemble:
        return NOTHING
    if spec.declared:
        return memory.highest(spec.declared, spec.learned) if spec.learned else spec.declared
    if spec.learned:
        return memory.scaled(spec.learned, limits.margin)
    likely = memory.scaled(spec.expected, limits.margin)
    files = ARTIFACT_FACTOR * spec.artifact_bytes * spec.instances
    return {
        resource: max(
            min(max(files, likely.get(resource, 0)), limit),
            round(limits.unknown_share * limit),
            spec.artifact_bytes,
        )
        for resource, limit in budget.items()
    }


def expected(known: UnitSpec, spec: UnitSpec) -> Memory:
    """Bytes that a unit should take now that `spec` replaces `known`: what it took, scaled by its
    instances, and more by what its files have grown. Empty while nothing is known of it."""
    if (known.config_digest, known.fingerprint) == (spec.config_digest, spec.fingerprint):
        return known.expected
    growth = ARTIFACT_FACTOR * spec.instances * max(0, spec.artifact_bytes - known.artifact_bytes)
    return {
        resource: round(size * spec.instances / known.instances) + growth
        for resource, size in (known.learned or known.expected).items()
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
