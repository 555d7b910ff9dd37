"""The memory that a version takes, as observed while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shoal.names import ModelVersionName


@dataclass(frozen=True, slots=True)
class Footprint:
    """A version's peak memory in bytes by resource, and the microseconds of its last load.

    `fingerprint` is the version's at that time, or empty if it is not known.
    """

    version: ModelVersionName
    config_digest: str
    memory: Mapping[str, int] = field(default_factory=dict)
    load_us: int = 0
    fingerprint: str = ""


def merged(known: Footprint | None, reported: Footprint) -> Footprint:
    """Return the footprint after a report: a peak never falls while the config stays the same.

    A Controller that took over a resident version has not seen its peak, so its smaller figure must
    not replace the known one.
    """
    if known is None or known.config_digest != reported.config_digest:
        return reported
    memory = {
        resource: max(known.memory.get(resource, 0), reported.memory.get(resource, 0))
        for resource in sorted({*known.memory, *reported.memory})
    }
    return replace(reported, memory=memory, load_us=reported.load_us or known.load_us)
