"""Zip archives, read within bounds: what they list, and small files in them."""

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.refusal import Refusal

MAGIC: Final = b"PK\x03\x04"

_MAX_ENTRIES: Final = 50_000
_MAX_DIRECTORY: Final = 16 * 2**20  # bytes
# More than any model's data compresses to.
_MAX_RATIO: Final = 200
_RATIO_COUNTS_FROM: Final = 64 * 2**20  # bytes, unpacked
_END: Final = struct.Struct("<4s4H2LH")
_LOCAL: Final = 30  # bytes of a local header without its name


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that is open. `sizes` are those of its files, unpacked, in bytes."""

    name: str
    sizes: dict[str, int]
    _zip: zipfile.ZipFile

    def root(self) -> str:
        """Return the one folder that everything lies in, with its slash, or ""."""
        tops = {name.partition("/")[0] for name in self.sizes}
        return f"{tops.pop()}/" if len(tops) == 1 and all("/" in one for one in self.sizes) else ""

    def read(self, entry: str, most: int) -> bytes:
        """Return a whole file. Raises Refusal if it is missing, longer than `most`, or damaged."""
        if entry not in self.sizes:
            raise Refusal(f"{self.name} has no {entry}")
        if self.sizes[entry] > most:
            raise Refusal(f"{entry} in {self.name} has {self.sizes[entry]} bytes, more than {most}")
        try:
            with self._zip.open(entry) as file:
                data = file.read(most + 1)
        except Exception:  # zlib, lzma and bz2 have errors of their own
            raise Refusal(f"{entry} in {self.name} is damaged") from None
        if len(data) != self.sizes[entry]:
            raise Refusal(f"{entry} in {self.name} unpacks to another size than it says")
        return data


@contextmanager
def opened(artifact: Artifact, name: str) -> Iterator[Archive]:
    """Open an archive and check its directory. Raises Refusal."""
    size = artifact.files.get(name, 0)
    _check_end(name, artifact.read(name, 2**16 + 22 + 20, max(size - 2**16 - 42, 0)))
    with artifact.stream(name) as file:
        try:
            content = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError):
            raise Refusal(f"{name} is a zip archive with a damaged directory") from None
        with content:
            yield Archive(name, _checked(name, size, content.infolist()), content)


def _check_end(name: str, tail: bytes) -> None:
    """Check how large the directory says that it is, before anything reads it."""
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < _END.size:
        raise Refusal(f"{name} is a zip archive that is cut off: its directory is missing")
    _, _, _, _, entries, size, _, _ = _END.unpack_from(tail, place)
    if size == 0xFFFFFFFF or entries == 0xFFFF:  # the larger form stands before this one
        large = tail.rfind(b"PK\x06\x06", 0, place)
        if large >= 0 and len(tail) - large >= 56:
            entries, size = struct.unpack_from("<QQ", tail, large + 32)
    if size > _MAX_DIRECTORY or entries > _MAX_ENTRIES:
        raise Refusal(f"{name} is a zip archive with a directory of {entries} files, {size} bytes")


def _checked(name: str, size: int, entries: list[zipfile.ZipInfo]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        path = entry.filename
        if path.startswith(("/", "\\")) or ".." in path.split("/"):
            raise Refusal(f"{name} has a file whose name leads out of it: {path[:200]!r}")
        if path in sizes:
            raise Refusal(f"{name} has two files of the name {path[:200]!r}")
        if entry.flag_bits & 1:
            raise Refusal(f"{path[:200]} in {name} is encrypted")
        if entry.header_offset < end:
            raise Refusal(f"{name} has files that overlap: it would unpack to far more than it is")
        end = entry.header_offset + _LOCAL + len(path.encode()) + entry.compress_size
        if end > size:
            raise Refusal(f"{path[:200]} in {name} ends beyond the archive")
        if entry.file_size > max(entry.compress_size * _MAX_RATIO, _RATIO_COUNTS_FROM):
            raise Refusal(
                f"{path[:200]} in {name} would unpack {entry.compress_size} bytes to "
                f"{entry.file_size}"
            )
        if not entry.is_dir():
            sizes[path] = entry.file_size
    return sizes


def listed(artifact: Artifact, name: str) -> frozenset[str]:
    """Return the files of an archive below its one folder, or nothing if it is none."""
    if name not in artifact.listed:
        artifact.listed[name] = _listed(artifact, name)
    return artifact.listed[name]


def _listed(artifact: Artifact, name: str) -> frozenset[str]:
    if artifact.read(name, 4) != MAGIC:
        return frozenset()
    try:
        with opened(artifact, name) as archive:
            root = archive.root()
            return frozenset(entry.removeprefix(root) for entry in archive.sizes)
    except Refusal:
        return frozenset()
