"""Requests of a trace: who asks for which model when.

Models are numbers, from 0. Times are seconds that never decrease.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

CHUNK: Final = 1 << 13


class Requests(NamedTuple):
    """A stretch of a trace: seconds, and the model asked for at each."""

    times: Reals
    models: Numbers


Trace = Iterator[Requests]


def whole(trace: Trace) -> Requests:
    """All of a trace at once: 16 bytes a request."""
    chunks = list(trace)
    if not chunks:
        return Requests(np.empty(0), np.empty(0, np.int64))
    return Requests(
        np.concatenate([chunk.times for chunk in chunks]),
        np.concatenate([chunk.models for chunk in chunks]),
    )


def chunks(requests: Requests) -> Trace:
    for begin in range(0, len(requests.times), CHUNK):
        part = slice(begin, begin + CHUNK)
        yield Requests(requests.times[part], requests.models[part])
