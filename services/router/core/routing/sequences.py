"""Which replica a sequence of requests has begun on, and so stays on."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from services.router.core.routing.routes import Replica, Target
from services.router.core.wire.request import Sequence

IDLE_SECONDS: Final = 60.0  # then it is taken for abandoned


@dataclass
class Sequences:
    """By model version and the id that clients chose. Times are the caller's, in seconds."""

    _tied: dict[tuple[Target, int | str], tuple[Replica, float]] = field(default_factory=dict)
    _count: Counter[Replica] = field(default_factory=Counter)

    def replica(self, target: Target, id_: int | str) -> Replica | None:
        found = self._tied.get((target, id_))
        return None if found is None else found[0]

    def tie(self, id_: int | str, replica: Replica, now: float) -> bool:
        """It has begun there, or goes on there. Whether it is the first one there."""
        key = replica.target, id_
        before = self._tied.get(key)
        self._tied[key] = replica, now
        if before is not None and before[0] == replica:
            return False
        if before is not None:
            self._count[before[0]] -= 1
        self._count[replica] += 1
        return self._count[replica] == 1

    def known(self, target: Target, id_: int | str) -> bool:
        return (target, id_) in self._tied

    def begun(self, target: Target, asked: Sequence) -> bool:
        """Whether a request goes on with a sequence that is known of; ask before it is tied."""
        return not asked.start and self.known(target, asked.id)

    def end(self, target: Target, id_: int | str) -> None:
        tied = self._tied.pop((target, id_), None)
        if tied is not None:
            self._count[tied[0]] -= 1

    def any(self, replica: Replica) -> bool:
        """Whether one is tied to it."""
        return self._count[replica] > 0

    def used(self, now: float) -> Mapping[Replica, tuple[int, float]]:
        """Of each replica, how many are tied to it, and the seconds since the newest was used."""
        for (target, id_), (_, last) in list(self._tied.items()):
            if now - last > IDLE_SECONDS:
                self.end(target, id_)
        self._count = +self._count
        newest: dict[Replica, float] = {}
        for replica, last in self._tied.values():
            newest[replica] = max(last, newest.get(replica, last))
        return {replica: (count, now - newest[replica]) for replica, count in self._count.items()}


def over(asked: Sequence, *, begun: bool, failed: bool) -> bool:
    """Whether its sequence is over with a request: the last of it, or one that failed where nothing
    had `begun` before it."""
    return asked.end or (failed and not begun)


def home(servers: Iterable[str], id_: int | str) -> str:
    """The server of `servers`, at least one, where the sequence belongs that is tied to none: the
    same one for every Router that has the same table.

    Rendezvous hashing (Thaler and Ravishankar 1998): a server more or less moves only the sequences
    that are, or were, at home there.
    """

    def weight(server: str) -> bytes:
        return hashlib.blake2b(f"{server}\0{id_}".encode(), digest_size=8).digest()

    return max(servers, key=weight)


def draw(sequence: Sequence | None, chance: float) -> float:
    """Return where in [0, 1) a traffic policy sends a request: at `chance`, which was drawn for it,
    or where all requests of its sequence go."""
    if sequence is None:
        return chance
    return zlib.crc32(str(sequence.id).encode()) / 2**32
