"""Types of settings that carry their unit, which docs/settings.md shows."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class Unit:
    """What the number counts, as a person would write it after the number."""

    symbol: str


Seconds = Annotated[float, Unit("s")]
Bytes = Annotated[int, Unit("B")]
