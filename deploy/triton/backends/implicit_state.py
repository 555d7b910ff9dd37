"""Keeps the implicit state of sequences, which Triton keeps for other backends.

Triton gives each request of a sequence the state's initial value, and offers Python-based backends
no call to replace it. All requests of a sequence reach the same instance, so the state is kept
there. This file is put beside each backend's `model.py`.
"""

import time
from typing import Any

from signature import Arrays

# `flags()` of a request.
START = 1
END = 2

# Triton forgets a sequence that sends nothing for so many microseconds, 1 s by default. A request
# that came in time may have waited for others, so states are kept for longer.
IDLE = "max_sequence_idle_microseconds"
IDLE_DEFAULT_US = 1_000_000
TIMES_AS_LONG = 10
AT_LEAST_S = 60.0


class Forgotten(Exception):
    """The state of a sequence is not there any more."""


class SequenceStates:
    """The state tensors of each sequence, by correlation id."""

    def __init__(self, sequences: dict[str, Any]) -> None:
        idle_s = (int(sequences.get(IDLE, 0)) or IDLE_DEFAULT_US) / 1e6
        self._keep_s = max(TIMES_AS_LONG * idle_s, AT_LEAST_S)
        # In order of their last use.
        self._kept: dict[int | str, tuple[float, Arrays]] = {}

    def before(self, request: Any) -> Arrays:
        """Return the state inputs of a request, or none where Triton's initial values are right.

        Raises Forgotten.
        """
        # A request without a correlation id only fills a slot of a batch.
        if not request.correlation_id() or request.flags() & START:
            return {}
        try:
            return self._kept[request.correlation_id()][1]
        except KeyError:
            raise Forgotten(
                f"the state of sequence {request.correlation_id()!r} is gone: begin it again"
            ) from None

    def after(self, request: Any, states: Arrays) -> None:
        """Keep the state inputs of the next request of the same sequence."""
        sequence, now = request.correlation_id(), time.monotonic()
        if not sequence:
            return
        self._kept.pop(sequence, None)
        if not request.flags() & END:
            self._kept[sequence] = now, {name: array.copy() for name, array in states.items()}
        for other, (used, _) in list(self._kept.items()):
            if now - used < self._keep_s:
                break
            del self._kept[other]
