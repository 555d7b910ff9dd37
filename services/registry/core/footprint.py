"""The memory that a version takes, as observed while it runs, how much it is used, and why it could
not be loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shoal.names import ModelVersionName


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """The failure of a version's last load, the `count`-th in a row.

    It is not tried again before `retry_us`, in microseconds since the epoch. If `set_aside`, its
    requests crash servers. An empty `cause` means that it has been loaded since.
    """

    server: str = ""
    cause: str = ""
    count: int = 0
    retry_us: int = 0
    set_aside: bool = False


@dataclass(frozen=True, slots=True)
class Footprint:
    """A version's peak memory in bytes by resource, and the microseconds of its last load.

    `fingerprint` is the version's at that time, or empty if it is not known. `uses` are faded as of
    `used_us`, the last one in microseconds since the epoch; 0 if it is not known. `failure` is None
    if nothing is known of one.
    """

    version: ModelVersionName
    config_digest: str
    memory: Mapping[str, int] = field(default_factory=dict)
    load_us: int = 0
    fingerprint: str = ""
    uses: float = 0.0
    used_us: int = 0
    failure: LoadFailure | None = None


def merged(known: Footprint | None, reported: Footprint) -> Footprint:
    """Return the footprint after a report: a peak never falls while the config stays the same.

    A Controller that took over a resident version has not seen its peak, so its smaller figure must
    not replace the known one. Uses count for any config, and the newest are kept.
    A failure stands until the version is said to have been loaded.
    """
    if reported.failure is not None and not reported.failure.cause:
        known = replace(known, failure=None) if known is not None else None
        reported = replace(reported, failure=None)
    if known is None:
        return reported
    newest = max(known, reported, key=lambda footprint: footprint.used_us)
    reported = replace(reported, uses=newest.uses, used_us=newest.used_us)
    if known.config_digest != reported.config_digest:
        return reported
    memory = {
        resource: max(known.memory.get(resource, 0), reported.memory.get(resource, 0))
        for resource in sorted({*known.memory, *reported.memory})
    }
    return replace(
        reported,
        memory=memory,
        load_us=reported.load_us or known.load_us,
        failure=reported.failure or known.failure,
    )
