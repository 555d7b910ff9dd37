"""Contents on disk, each once, by their SHA-256.

    <root>/blobs/<2 digits>/<digest>   a whole content that was verified, read-only
    <root>/partial/<key>               the beginning of a content that is arriving
    <root>/known/<key>                 the digest of what has arrived under that key

A content is written under its key, verified, synced and renamed, so that whatever lies in `blobs`
is whole at any moment. The key of a content whose digest is not known in advance stands for the
place and the revision that it comes from. All methods block.
"""

import contextlib
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from services.registry.core.errors import ContentMismatch
from services.registry.core.manifest import is_sha256

_READ_BYTES: Final = 1 << 20
# The time of every content, so that a content that is fetched again is the same file for Triton.
_MTIME_NS: Final = 946_684_800 * 10**9  # 2000-01-01


class Blobs:
    """The contents below `root`, and what has arrived of others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "blobs"
        self._partial = root / "partial"
        self._known = root / "known"
        self._sizes: dict[str, int] = {}
        self._size = 0
        self._placing = threading.Lock()
        self._serial = itertools.count()

    def prepare(self) -> None:
        """Make the folders, and look at what is there."""
        for folder in (self.folder, self._partial, self._known):
            folder.mkdir(parents=True, exist_ok=True)
        for retired in self._partial.glob("gone-*"):
            retired.unlink()
        self._sizes = {
            path.name: path.stat().st_size
            for path in self.folder.glob("??/*")
            if is_sha256(path.name)
        }
        self._size = sum(self._sizes.values())
        for path in self._known.iterdir():
            if path.read_text() not in self._sizes:
                path.unlink()

    @property
    def size(self) -> int:
        """Return the bytes of all whole contents."""
        return self._size

    def size_of(self, sha256: str) -> int:
        return self._sizes[sha256]

    @property
    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each whole content."""
        return dict(self._sizes)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._sizes

    def path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def known(self, key: str) -> str:
        """Return the digest of the content that has arrived under a key and is here, or ""."""
        with contextlib.suppress(OSError):
            sha256 = (self._known / key).read_text()
            if sha256 in self._sizes:
                return sha256
        return ""

    def arrived(self, key: str) -> int:
        """Return how many bytes have arrived of an unfinished content."""
        try:
            return (self._partial / key).stat().st_size
        except OSError:
            return 0

    def partials(self) -> dict[str, tuple[int, float]]:
        """Return the bytes of each unfinished content, and the seconds since it last grew."""
        found: dict[str, tuple[int, float]] = {}
        for path in self._partial.iterdir():
            with contextlib.suppress(OSError):
                if path.name.startswith("gone-"):
                    continue
                status = path.stat()
                found[path.name] = (status.st_size, time.time() - status.st_mtime)
        return found

    def drop_partial(self, key: str) -> None:
        (self._partial / key).unlink(missing_ok=True)

    def begin(self, key: str, *, resume: bool) -> "Arriving":
        """Begin a content under a key, or go on where it was broken off."""
        path = self._partial / key
        if not resume:
            path.unlink(missing_ok=True)
        return Arriving(path, key)

    def keep(self, arriving: "Arriving", path: str, expected: str) -> str:
        """Make a whole content of what has arrived, and return its digest.

        Raises ContentMismatch, after which nothing is left, unless `expected` is "" or its digest.
        """
        sha256 = arriving.sha256
        if expected and sha256 != expected:
            arriving.discard()
            raise ContentMismatch(
                path=path,
                problem=f"its content has the SHA-256 {sha256}, and {expected} was expected",
            )
        size = arriving.finish()
        self._place(arriving.path, sha256, size)
        if arriving.key != sha256:
            _write(self._known / arriving.key, sha256.encode())
        return sha256

    def take(self, file: Path, sha256: str) -> int:
        """Make a whole content of a file on the same file system; return its size in bytes."""
        size = _seal(file)
        self._place(file, sha256, size)
        return size

    def _place(self, file: Path, sha256: str, size: int) -> None:
        target = self.path(sha256)
        target.parent.mkdir(exist_ok=True)
        with self._placing:
            if sha256 in self._sizes:  # links lead to the file that is there
                file.unlink()
                return
            file.replace(target)
            self._sizes[sha256] = size
            self._size += size
        _sync(target.parent)

    def retire(self, contents: Iterable[str]) -> list[Path]:
        """Take contents out of the store at once, and return the files that are left to remove."""
        retired: list[Path] = []
        with self._placing:
            for sha256 in contents:
                size = self._sizes.pop(sha256, None)
                if size is None:
                    continue
                path = self._partial / f"gone-{next(self._serial)}"
                try:
                    self.path(sha256).replace(path)
                except FileNotFoundError:
                    self._size -= size
                else:
                    retired.append(path)
        return retired

    def remove(self, retired: Iterable[Path]) -> int:
        """Remove the files of retired contents, and return the bytes that this frees."""
        freed = 0
        for path in retired:
            with contextlib.suppress(FileNotFoundError):
                freed += path.stat().st_size
                path.unlink()
        with self._placing:
            self._size -= freed
        return freed


class Arriving:
    """The beginning of a content, to which bytes are added."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self._hash = hashlib.sha256()
        self.size = 0
        for chunk in _chunks(path):
            self._hash.update(chunk)
            self.size += len(chunk)
        self._file = path.open("ab")

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def pause(self) -> None:
        """Close the file, so that somebody can go on with it."""
        self._file.close()

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def finish(self) -> int:
        """Have everything on disk, as it will stay; return its size in bytes."""
        self._file.close()
        return _seal(self.path)


def _seal(path: Path) -> int:
    """Have a file on disk, as it will stay; return its size in bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.chmod(0o444)
    os.utime(path, ns=(_MTIME_NS, _MTIME_NS))
    return path.stat().st_size


def _chunks(path: Path) -> Iterator[bytes]:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            yield chunk


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
