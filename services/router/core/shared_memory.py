"""Regions of shared memory: what callers name, and what the servers map.

A server maps a piece of memory once and whole, under a name that cannot be guessed. Callers'
regions are parts of it. (Triton 24.10 maps a key that it already knows through a file descriptor
that it has closed, so two regions of one key must not reach it.)"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.router.core.errors import RegionBounds, RegionExists, RegionNotFound, RegionRefused

SYSTEM: Final = "system"
CUDA: Final = "cuda"

# Prefixes of other files in that folder: Triton's own, and the C library's semaphores.
_RESERVED: Final = ("triton_python_backend_shm", "sem.")
_LONGEST_KEY: Final = 255


class Owner(NamedTuple):
    """The caller to whom a region belongs."""

    tenant: str
    subject: str


class MemorySource(NamedTuple):
    """A piece of memory."""

    kind: str
    #: Of system memory the key, of CUDA memory the handle in hexadecimal digits.
    key: str
    #: Of system memory the device and inode of the file, of CUDA memory the number of the GPU.
    place: tuple[int, ...]
    #: Bytes of the whole piece.
    size: int


@dataclass(eq=False, slots=True)
class MappedMemory:
    """A piece of memory that the servers map as `name`."""

    name: str
    owner: Owner
    source: MemorySource
    #: The number of callers' regions in it.
    regions: int = 0
    #: The number of requests that use it, which may outlast its last region.
    in_flight: int = 0

    @property
    def idle(self) -> bool:
        return not (self.regions or self.in_flight)


class Region(NamedTuple):
    """A caller's region. `key` is as the caller wrote it; `offset` and `size` are in bytes of the
    source."""

    name: str
    key: str
    mapped: MappedMemory
    offset: int
    size: int


class Regions:
    """All registered regions."""

    def __init__(self) -> None:
        self._regions: dict[Owner, dict[str, Region]] = {}
        self._mapped: dict[str, MappedMemory] = {}

    def mapped(self) -> list[MappedMemory]:
        return list(self._mapped.values())

    def require_new(self, owner: Owner, name: str) -> None:
        """Raises RegionExists or RegionRefused if no region may have that name."""
        if not name:
            raise RegionRefused(region=name, problem="invalid args: it has no name")
        if name in self._regions.get(owner, {}):
            raise RegionExists(region=name)

    def find_mapped(self, owner: Owner, name: str, source: MemorySource) -> MappedMemory | None:
        """Return the memory that maps `source` already, or None.

        Raises RegionRefused if it belongs to another caller, or was different memory when it was
        mapped."""
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
        """Register a region. Raises RegionExists, RegionRefused."""
        name, mapped = region.name, region.mapped
        self.require_new(mapped.owner, name)
        require_inside(name, mapped.source, region.offset, region.size)
        self._mapped[mapped.name] = mapped
        mapped.regions += 1
        self._regions.setdefault(mapped.owner, {})[name] = region

    def remove(self, owner: Owner, kind: str, name: str) -> list[MappedMemory]:
        """Remove a region, or all of the kind if `name` is "", and return the memory that they were
        in. As with Triton, a name that is not registered is not an error."""
        gone = [r for r in self.of(owner, kind) if name in ("", r.name)]
        for region in gone:
            del self._regions[owner][region.name]
            region.mapped.regions -= 1
        return list(dict.fromkeys(region.mapped for region in gone))

    def forget(self, mapped: MappedMemory) -> None:
        self._mapped.pop(mapped.name, None)

    def of(self, owner: Owner, kind: str) -> Iterator[Region]:
        """Yield the owner's regions of a kind."""
        for region in list(self._regions.get(owner, {}).values()):
            if region.mapped.source.kind == kind:
                yield region

    def find(self, owner: Owner, kind: str, name: str) -> Region:
        """Return a region of the owner. Raises RegionNotFound."""
        for region in self.of(owner, kind):
            if region.name == name:
                return region
        raise RegionNotFound(kind=f"{kind} ", region=name)

    def locate(self, owner: Owner, name: str, offset: int, size: int) -> tuple[MappedMemory, int]:
        """Return the memory that holds the tensor at `offset` of a region, and the tensor's offset
        in that memory. Raises RegionNotFound, RegionBounds."""
        region = self._regions.get(owner, {}).get(name)
        if region is None:
            raise RegionNotFound(kind="", region=name)
        if not 0 <= offset < region.size:
            raise RegionBounds(part="offset", region=name)
        if size < 0 or offset + size > region.size:
            raise RegionBounds(part="offset + byte size", region=name)
        return region.mapped, region.offset + offset


def file_name(region: str, key: str) -> str:
    """Return the name of the file behind a key of POSIX shared memory. Raises RegionRefused."""
    name = key.lstrip("/")
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(name) > _LONGEST_KEY:
        raise RegionRefused(region=region, problem=f"invalid shm key {key[:128]!r}")
    if name.startswith(_RESERVED):
        raise RegionRefused(region=region, problem=f"the key {key[:128]!r} is reserved")
    return name


def require_inside(region: str, source: MemorySource, offset: int, size: int) -> None:
    """Raises RegionRefused unless `size` bytes at `offset` are within the source."""
    if size <= 0 or offset + size > source.size:
        raise RegionRefused(
            region=region,
            problem=f"invalid args: {size} bytes at {offset} are not within the {source.size} "
            "that there are",
        )
