"""The files below a folder, with symbolic links followed as far as is safe.

Loading a model is running its code, and whatever a model's folder links to is read by Triton under
Triton's rights and may be answered to clients. So a link is followed only to what lies in the same
folder.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.errors import InvalidArtifact

# Links to folders that hold links to folders can make a few files look like millions.
MAX_ENTRIES: Final = 100_000
CACHE: Final = "__pycache__"
_HASHED_UP_TO: Final = 16 * 2**20  # bytes; of larger files size and time stand for the content


@dataclass(frozen=True, slots=True)
class File:
    """`relative` to the folder; `real` is where its bytes are, every link followed."""

    relative: str
    real: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Tree:
    """`folders` are relative, each after the one that holds it."""

    folders: tuple[str, ...] = ()
    files: tuple[File, ...] = ()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)


def read(top: Path, boundary: Path, keep: Callable[[str], bool] = lambda name: True) -> Tree:
    """Everything below `top` but Python's caches. `keep` is asked for the names in `top` itself.

    Raises InvalidArtifact for what leads out of `boundary`, leads nowhere, is neither file nor
    folder, or cannot be read.
    """
    folders: list[str] = []
    files: list[File] = []
    fence = os.path.realpath(boundary)
    try:
        for relative, real, found in _walk(_inside(str(top), fence), "", fence, keep, ()):
            if len(folders) + len(files) >= MAX_ENTRIES:
                raise InvalidArtifact(
                    path=shown(top), problem=f"more than {MAX_ENTRIES} files and folders are in it"
                )
            if stat.S_ISDIR(found.st_mode):
                folders.append(relative)
            else:
                files.append(File(relative, real, found.st_size, found.st_mtime_ns))
    except OSError as error:
        raise unreadable(top, error) from None
    return Tree(tuple(folders), tuple(files))


def without(tree: Tree, dropped: Callable[[str], bool]) -> Tree:
    """Without the files whose relative path is dropped."""
    return Tree(tree.folders, tuple(file for file in tree.files if not dropped(file.relative)))


def unreadable(path: Path, error: OSError) -> InvalidArtifact:
    return InvalidArtifact(path=shown(error.filename or path), problem=error.strerror or str(error))


def shown(path: str | os.PathLike[str]) -> str:
    """For messages: names on disk need not be UTF-8, strings in protobuf must be."""
    return os.fsencode(path).decode(errors="replace")


def content_digest(tree: Tree) -> str:
    """Changes with names and contents; empty for an empty tree. Raises OSError."""
    if not tree.files:
        return ""
    digest = hashlib.sha256()
    for file in tree.files:
        digest.update(os.fsencode(file.relative) + b"\0")
        if file.size <= _HASHED_UP_TO:
            digest.update(hashlib.sha256(Path(file.real).read_bytes()).digest())
        else:
            digest.update(f"{file.size} {file.mtime_ns}".encode())
    return digest.hexdigest()


def stat_digest(tree: Tree) -> str:
    """Changes when a file is replaced, written or touched, as Triton sees it too."""
    digest = hashlib.sha256()
    for file in tree.files:
        digest.update(os.fsencode(f"{file.relative}\0{file.real}\0{file.size} {file.mtime_ns}\0"))
    return digest.hexdigest()


def _walk(
    real: str, prefix: str, fence: str, keep: Callable[[str], bool], above: tuple[str, ...]
) -> Iterator[tuple[str, str, os.stat_result]]:
    """(relative path, real path, what it is), in the order of names."""
    for entry in sorted(os.scandir(real), key=lambda entry: entry.name):
        if entry.name == CACHE or not (prefix or keep(entry.name)):
            continue
        relative = f"{prefix}{entry.name}"
        target = _inside(entry.path, fence) if entry.is_symlink() else entry.path
        found = Path(target).stat()
        if stat.S_ISDIR(found.st_mode):
            if target in (real, *above):
                raise InvalidArtifact(
                    path=shown(entry.path), problem="it links to a folder above it"
                )
            yield relative, target, found
            yield from _walk(target, f"{relative}/", fence, keep, (real, *above))
        elif stat.S_ISREG(found.st_mode):
            yield relative, target, found
        else:
            raise InvalidArtifact(path=shown(entry.path), problem="it is neither file nor folder")


def _inside(path: str, fence: str) -> str:
    """Where the path leads. Raises InvalidArtifact."""
    target = os.path.realpath(path)
    if os.path.commonpath((target, fence)) != fence:
        raise InvalidArtifact(
            path=shown(path),
            problem=f"it links to {shown(target)}, outside of {shown(fence)}: copy the file there",
        )
    if not Path(target).exists():
        raise InvalidArtifact(path=shown(path), problem="it links to nothing")
    return target
