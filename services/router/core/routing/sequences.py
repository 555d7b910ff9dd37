"""The replicas on which sequences of requests have begun, and must stay."""

import enum
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.router.core.routing.routes import Replica, Target
from services.router.core.wire.request import Sequence

IDLE_SECONDS: Final = 60.0  # without a request, until it is taken for abandoned

_CORRID: Final = 3  # CONTROL_SEQUENCE_CORRID of inference.ModelSequenceBatching.Control
_TYPE_STRING: Final = 13  # of inference.DataType


class SequenceIds(enum.Enum):
    """The ids of sequences that a model takes.

    IGNORED  It has no sequences, so ids mean nothing to it.
    NUMBERS  Numbers. Triton 24.10 writes a text beyond the end of the memory for a number, and its
             process ends sooner or later.
    ANY      Numbers and texts."""

    IGNORED = enum.auto()
    NUMBERS = enum.auto()
    ANY = enum.auto()


def sequence_ids(config: Any) -> SequenceIds:
    """Return the ids that a model takes by its own inference.ModelConfig, whatever its parts are
    if it is an ensemble."""
    if not config.HasField("sequence_batching"):
        return SequenceIds.IGNORED
    controls = (one for tensor in config.sequence_batching.control_input for one in tensor.control)
    types = [one.data_type for one in controls if one.kind == _CORRID]
    return SequenceIds.ANY if all(one == _TYPE_STRING for one in types) else SequenceIds.NUMBERS


def shared_ids(of_parts: Iterable[SequenceIds]) -> SequenceIds:
    """Return the ids that an ensemble takes. Triton gives a request's id to each of its parts."""
    found = set(of_parts)
    for ids in (SequenceIds.NUMBERS, SequenceIds.ANY):
        if ids in found:
            return ids
    return SequenceIds.IGNORED


@dataclass
class Sequences:
    """Sequences by model version and by the id that the client chose. Times are the caller's, in
    seconds."""

    _tied: dict[tuple[Target, int | str], tuple[Replica, float]] = field(default_factory=dict)
    _count: Counter[Replica] = field(default_factory=Counter)

    def replica(self, target: Target, id_: int | str) -> Replica | None:
        """Return the replica that the sequence is tied to."""
        found = self._tied.get((target, id_))
        return None if found is None else found[0]

    def tie(self, id_: int | str, replica: Replica, now: float) -> bool:
        """Tie a sequence to `replica`. Returns whether it is the only one there."""
        key = replica.target, id_
        before = self._tied.get(key)
        self._tied[key] = replica, now
        if before is not None and before[0] == replica:
            return False
        if before is not None:
            self._count[before[0]] -= 1
        self._count[replica] += 1
        return self._count[replica] == 1

    def begun(self, target: Target, asked: Sequence) -> bool:
        """Return whether a request continues a sequence that is known. Ask before it is tied."""
        return not asked.start and (target, asked.id) in self._tied

    def end(self, target: Target, id_: int | str) -> None:
        """Forget a sequence."""
        tied = self._tied.pop((target, id_), None)
        if tied is not None:
            self._count[tied[0]] -= 1

    def any_on(self, replica: Replica) -> bool:
        """Return whether a sequence is tied to the replica."""
        return self._count[replica] > 0

    def usage(self, now: float) -> Mapping[Replica, tuple[int, float]]:
        """Return, for each replica, the number of sequences tied to it and the seconds since one
        was last used. Sequences unused for `IDLE_SECONDS` are forgotten."""
        for (target, id_), (_, last) in list(self._tied.items()):
            if now - last > IDLE_SECONDS:
                self.end(target, id_)
        self._count = +self._count
        newest: dict[Replica, float] = {}
        for replica, last in self._tied.values():
            newest[replica] = max(last, newest.get(replica, last))
        return {replica: (count, now - newest[replica]) for replica, count in self._count.items()}


def ends_sequence(asked: Sequence, *, begun: bool, failed: bool) -> bool:
    """Return whether a request ends its sequence: as the last of it, or by failing if nothing had
    `begun` before."""
    return asked.end or (failed and not begun)


def home_server(servers: Iterable[str], id_: int | str) -> str:
    """Return which of `servers` takes the sequence if it is tied to none. Every Router with the
    same table returns the same server. `servers` must not be empty.

    Rendezvous hashing (Thaler and Ravishankar 1998): a server that comes or goes moves only those
    sequences that are at home there."""

    def weight(server: str) -> bytes:
        return hashlib.blake2b(f"{server}\0{id_}".encode(), digest_size=8).digest()

    return max(servers, key=weight)


def policy_draw(sequence: Sequence | None, chance: float) -> float:
    """Return where in [0, 1) a traffic policy sends a request: at `chance`, drawn for it, or where
    all requests of its sequence go."""
    if sequence is None:
        return chance
    return zlib.crc32(str(sequence.id).encode()) / 2**32
