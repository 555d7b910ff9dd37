"""What leaves the store's disk when there is no room: a decision, with its reasons.

Files that can be fetched again may leave, the least recently used first. Two versions may share a
content, which is only gone once both have left.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holding:
    """The files of one manifest.

    `versions` are the names of those that have these files; an upload that waits to be registered
    has none. `contents` are sizes in bytes by digest. `used_us` is the time of the last use in
    microseconds since 1970, or 0. `kept` is why the files may not leave, or "". `present` says
    whether they are on disk.
    """

    digest: str
    versions: tuple[str, ...]
    contents: Mapping[str, int]
    used_us: int = 0
    kept: str = ""
    present: bool = True

    @property
    def takes_room(self) -> bool:
        """Return whether its contents are needed on disk."""
        return self.present or not self.versions

    @property
    def size(self) -> int:
        return sum(self.contents.values())


@dataclass(frozen=True, slots=True)
class Leaving:
    """Files that leave the disk, the bytes that this frees, and why.

    `at_us` is when they have left, in microseconds since 1970, or 0.
    """

    digest: str
    versions: tuple[str, ...]
    frees: int
    reason: str
    at_us: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """What leaves, in this order, and the bytes that are `short` even if all of it does."""

    leaving: tuple[Leaving, ...]
    short: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What decides whether files may leave."""

    refetchable: bool
    registered: bool = True
    pinned: bool = False
    resident: bool = False
    residents_known: bool = True
    busy: bool = False
    waiting: bool = False


def why_kept(standing: Standing) -> str:
    """Return why files may not leave the disk, or "" if they may."""
    if standing.busy:
        return "they are being fetched or read"
    if not standing.registered:
        return "they wait to be registered"
    if not standing.refetchable:
        return "they were uploaded, so they cannot be fetched again"
    if standing.pinned:
        return "the version is pinned"
    if standing.resident:
        return "a server holds the version or is about to"
    if standing.waiting:
        return "a server has yet to complete the config"
    if not standing.residents_known:
        return "the Controller has not said yet what is in memory"
    return ""


def choose(holdings: Iterable[Holding], needed: int, why: str) -> Choice:
    """Choose what leaves, so that `needed` bytes become free. `why` says for what.

    Nothing leaves if it would not be enough.
    """
    everything = [one for one in holdings if one.takes_room]
    users = Counter(content for one in everything for content in one.contents)
    candidates = sorted(
        (one for one in everything if not one.kept), key=lambda one: (one.used_us, one.digest)
    )
    leaving: list[Leaving] = []
    left = needed
    for place, one in enumerate(candidates, start=1):
        if left <= 0:
            break
        frees = _frees(one, users)
        users.subtract(one.contents.keys())
        left -= frees
        rank = f"number {place} of {len(candidates)} that may leave, the least recently used first"
        leaving.append(Leaving(one.digest, one.versions, frees, f"{why}: {rank}"))
    if left > 0:
        return Choice((), left)
    return Choice(tuple(leaving))


def own_bytes(holdings: Iterable[Holding]) -> dict[str, int]:
    """Return the bytes on disk of each holding, by digest, that no other one shares."""
    here = [one for one in holdings if one.takes_room]
    users = Counter(content for one in here for content in one.contents)
    return {one.digest: _frees(one, users) for one in here}


def unneeded(
    contents: Mapping[str, int], holdings: Iterable[Holding], busy: Collection[str]
) -> dict[str, int]:
    """Return the contents on disk that no holding needs there, and that nobody works with."""
    needed = {content for one in holdings if one.takes_room for content in one.contents}
    return {one: size for one, size in contents.items() if one not in needed and one not in busy}


def _frees(one: Holding, users: Counter[str]) -> int:
    return sum(size for content, size in one.contents.items() if users[content] == 1)
