"""Regions of shared memory: what callers name them, and what the servers map.

A server maps a piece of memory once and whole, under a name that nobody can guess; callers' regions
are parts of it. (Triton 24.10 maps a key that it knows already by a file descriptor that it has
closed, so two regions of one key must not reach it.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.router.core.errors import RegionBounds, RegionExists, RegionNotFound, RegionRefused

SYSTEM: Final = "system"
CUDA: Final = "cuda"

# What else lies where shared memory does: Triton's own, and the C library's semaphores.
_RESERVED: Final = ("triton_python_backend_shm", "sem.")
_LONGEST_KEY: Final = 255


class Owner(NamedTuple):
    """Whose regions are whose."""

    tenant: str
    subject: str


class Source(NamedTuple):
    """What a piece of memory is. System: its `key`, and the file behind it (device, inode). CUDA:
    the handle, as hexadecimal digits, and the GPU's number. `size`: bytes, all of it."""

    kind: str
    key: str
    place: tuple[int, ...]
    size: int


@dataclass(eq=False, slots=True)
class Mapped:
    """A source that the servers map as `name`. `regions`: callers' regions in it. `in_flight`:
    requests that use it, maybe after its last region is gone."""

    name: str
    owner: Owner
    source: Source
    regions: int = 0
    in_flight: int = 0

    @property
    def idle(self) -> bool:
        return not (self.regions or self.in_flight)


class Region(NamedTuple):
    """`key`: as the caller wrote it. `offset`, `size`: bytes of its source."""

    name: str
    key: str
    mapped: Mapped
    offset: int
    size: int


class Regions:
    """All that is registered."""

    def __init__(self) -> None:
        self._regions: dict[Owner, dict[str, Region]] = {}
        self._mapped: dict[str, Mapped] = {}

    def mapped(self) -> list[Mapped]:
        return list(self._mapped.values())

    def check(self, owner: Owner, name: str) -> None:
        """Raises RegionExists, RegionRefused."""
        if not name:
            raise RegionRefused(region=name, problem="invalid args: it has no name")
        if name in self._regions.get(owner, {}):
            raise RegionExists(region=name)

    def source(self, owner: Owner, name: str, source: Source) -> Mapped | None:
        """What maps the source already. Raises RegionRefused where it is another's, or was another
        memory when it was mapped."""
        for mapped in self._mapped.values():
            if (mapped.source.kind, mapped.source.key) != (source.kind, source.key):
                continue
            if mapped.owner != owner:
                raise RegionRefused(
                    region=name, problem="invalid args: another caller has registered that memory"
                )
            if mapped.source != source:
                raise RegionRefused(
                    region=name,
                    problem="invalid args: that memory was made anew or has another size since "
                    "regions of it were registered; unregister those first",
                )
            return mapped
        return None

    def add(self, region: Region) -> None:
        """Raises RegionExists, RegionRefused."""
        name, mapped = region.name, region.mapped
        self.check(mapped.owner, name)
        inside(name, mapped.source, region.offset, region.size)
        self._mapped[mapped.name] = mapped
        mapped.regions += 1
        self._regions.setdefault(mapped.owner, {})[name] = region

    def remove(self, owner: Owner, kind: str, name: str) -> list[Mapped]:
        """What its regions were in. `name`: "" for all of the kind; one that is not there is
        nothing to complain of, for Triton neither."""
        gone = [r for r in self.of(owner, kind) if name in ("", r.name)]
        for region in gone:
            del self._regions[owner][region.name]
            region.mapped.regions -= 1
        return list(dict.fromkeys(region.mapped for region in gone))

    def forget(self, mapped: Mapped) -> None:
        self._mapped.pop(mapped.name, None)

    def of(self, owner: Owner, kind: str) -> Iterator[Region]:
        for region in list(self._regions.get(owner, {}).values()):
            if region.mapped.source.kind == kind:
                yield region

    def find(self, owner: Owner, kind: str, name: str) -> Region:
        """Raises RegionNotFound."""
        for region in self.of(owner, kind):
            if region.name == name:
                return region
        raise RegionNotFound(kind=f"{kind} ", region=name)

    def part(self, owner: Owner, name: str, offset: int, size: int) -> tuple[Mapped, int]:
        """What a tensor means that lies at `offset` of the region `name`: in what it is, and where
        there. Raises RegionNotFound, RegionBounds."""
        region = self._regions.get(owner, {}).get(name)
        if region is None:
            raise RegionNotFound(kind="", region=name)
        if not 0 <= offset < region.size:
            raise RegionBounds(part="offset", region=name)
        if size < 0 or offset + size > region.size:
            raise RegionBounds(part="offset + byte size", region=name)
        return region.mapped, region.offset + offset


def file_name(region: str, key: str) -> str:
    """The name of the file behind a key of POSIX shared memory. Raises RegionRefused."""
    name = key.lstrip("/")
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(name) > _LONGEST_KEY:
        raise RegionRefused(region=region, problem=f"invalid shm key {key[:128]!r}")
    if name.startswith(_RESERVED):
        raise RegionRefused(region=region, problem=f"the key {key[:128]!r} is reserved")
    return name


def inside(region: str, source: Source, offset: int, size: int) -> None:
    """Raises RegionRefused unless it is a part of the source."""
    if size <= 0 or offset + size > source.size:
        raise RegionRefused(
            region=region,
            problem=f"invalid args: {size} bytes at {offset} are no part of the {source.size} "
            "that are there",
        )
