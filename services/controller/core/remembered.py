"""Instructions to have the Registry keep what is to outlive this Controller."""

from dataclasses import dataclass

from services.controller.core.entities import Unit
from services.controller.core.memory import Memory


@dataclass(frozen=True, slots=True)
class Failing:
    """The failure of a unit's last load, the `count`-th in a row: it is not tried again for `wait`
    seconds, which are negative if they are over."""

    server: str
    cause: str
    count: int
    set_aside: bool
    wait: float


@dataclass(frozen=True, slots=True)
class Learned:
    """Have the Registry keep a unit's size (bytes by resource) and load time, now better known.
    They belong to the config and the files of that digest and fingerprint."""

    unit: Unit
    config_digest: str
    fingerprint: str
    memory: Memory
    load_seconds: float | None


@dataclass(frozen=True, slots=True)
class Used:
    """Have the Registry keep how much a unit is used: faded `uses` as of the last one, which was
    `idle` seconds ago."""

    unit: Unit
    config_digest: str
    fingerprint: str
    uses: float
    idle: float


@dataclass(frozen=True, slots=True)
class Failed:
    """Have the Registry keep why a unit cannot be loaded; None once it could. It belongs to the
    config and the files of that digest and fingerprint."""

    unit: Unit
    config_digest: str
    fingerprint: str
    failing: Failing | None
