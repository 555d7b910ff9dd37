"""What it costs to have a model resident, and to bring it there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.simulator.requests import Numbers, Reals

MIB: Final = 1 << 20
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Costs:
    """By model: its name, bytes, seconds to load it, seconds to unload it."""

    names: Sequence[str]
    bytes: Numbers
    load_seconds: Reals
    unload_seconds: Reals


SMALLEST: Final = 30 * MIB
LARGEST: Final = 16 * GIB
MEDIAN: Final = 600 * MIB
SPREAD: Final = 1.2  # of the logarithm of the size
START_SECONDS: Final = 0.3  # of every load: a process, a runtime
BYTES_PER_SECOND: Final = GIB  # read, parsed and copied
LOAD_NOISE: Final = 0.7  # of the logarithm of the time beyond START_SECONDS


def generated(models: int, seed: int, names: Sequence[str] = ()) -> Costs:
    """Log-normal sizes; loading takes as long as the size lets expect, give or take a factor 2."""
    random = np.random.default_rng([seed, *b"costs"])
    sizes = random.lognormal(math.log(MEDIAN), SPREAD, models).clip(SMALLEST, LARGEST).round()
    noise = random.lognormal(0.0, LOAD_NOISE, models)
    load_seconds = START_SECONDS + sizes / BYTES_PER_SECOND * noise
    return Costs(
        names or [f"model-{number}" for number in range(models)],
        sizes.astype(np.int64),
        load_seconds,
        unloading(load_seconds),
    )


def unloading(load_seconds: Reals) -> Reals:
    """Seconds to unload, where only the loading is known: a tenth of a second, and a little."""
    return 0.1 + 0.05 * load_seconds
