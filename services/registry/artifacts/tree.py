"""The files below a folder, with symbolic links followed as far as is safe.

Loading a model runs its code. Whatever a model's folder links to is read with Triton's permissions
and may be returned to clients. So a link is followed only if it leads into one of the folders that
the caller names.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from services.registry.core.errors import InvalidArtifact

# Links to folders with more links to folders can make a few files look like millions.
MAX_ENTRIES: Final = 100_000
MAX_DEPTH: Final = 200
CACHE: Final = "__pycache__"
_HASHED_UP_TO: Final = 16 * 2**20  # bytes; size and time stand for the content of larger files


@dataclass(frozen=True, slots=True)
class File:
    """A file: its path relative to the folder, and its real path with all links followed."""

    relative: str
    real: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Tree:
    """The contents of a folder.

    `folders` are relative paths, parents first. `dangling` are links that lead to nothing: the
    relative path, and where it leads.
    """

    folders: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    dangling: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Return the total size in bytes."""
        return sum(file.size for file in self.files)


def read(
    top: Path, within: Iterable[Path], keep: Callable[[str], bool] = lambda name: True
) -> Tree:
    """Read everything below `top` except Python's caches. `keep` filters the names in `top`.

    Raises InvalidArtifact for anything that leads out of the folders in `within`, is neither a file
    nor a folder, or cannot be read.
    """
    folders: list[str] = []
    files: list[File] = []
    dangling: list[tuple[str, str]] = []
    fence = tuple(os.path.realpath(folder) for folder in within)
    try:
        for relative, real, found in _walk(_inside(str(top), fence), "", fence, keep, ()):
            if len(folders) + len(files) + len(dangling) >= MAX_ENTRIES:
                raise InvalidArtifact(
                    path=shown(top),
                    problem=f"it contains more than {MAX_ENTRIES} files and folders",
                )
            if found is None:
                dangling.append((relative, real))
            elif stat.S_ISDIR(found.st_mode):
                folders.append(relative)
            else:
                files.append(File(relative, real, found.st_size, found.st_mtime_ns))
    except OSError as error:
        raise unreadable(top, error) from None
    return Tree(tuple(folders), tuple(files), tuple(dangling))


def is_folder(path: "Path | os.DirEntry[str]") -> bool:
    """Return whether a path leads to a folder; False also where that cannot be told."""
    try:
        return path.is_dir()
    except OSError:  # a link that leads back to itself, or through a folder that is closed
        return False


def exists(path: Path) -> bool:
    """Return whether a path leads to anything; False also where that cannot be told."""
    try:
        return path.exists()
    except OSError:
        return False


def link(file: Path, path: Path) -> None:
    """Make `path` the same file, or a symbolic link to it where the file system has no others."""
    try:
        path.hardlink_to(file)
    except FileNotFoundError:
        raise
    except OSError:
        path.symlink_to(file)


def without(tree: Tree, dropped: Callable[[str], bool]) -> Tree:
    """Return the tree without the files whose relative paths `dropped` accepts."""
    return replace(tree, files=tuple(file for file in tree.files if not dropped(file.relative)))


def unreadable(path: Path, error: OSError) -> InvalidArtifact:
    """Return the error for a file that cannot be read."""
    return InvalidArtifact(path=shown(error.filename or path), problem=error.strerror or str(error))


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path for messages: names on disk may not be UTF-8, strings in protobuf must be."""
    return os.fsencode(path).decode(errors="replace")


def content_digest(tree: Tree) -> str:
    """Return a digest of names and contents, or "" for an empty tree. Raises OSError."""
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
    """Return a digest that changes when a file is replaced, written or touched, as for Triton."""
    digest = hashlib.sha256()
    for file in tree.files:
        digest.update(os.fsencode(f"{file.relative}\0{file.real}\0{file.size} {file.mtime_ns}\0"))
    return digest.hexdigest()


def _walk(
    real: str,
    prefix: str,
    fence: tuple[str, ...],
    keep: Callable[[str], bool],
    above: tuple[str, ...],
) -> Iterator[tuple[str, str, os.stat_result | None]]:
    """Yield (relative path, real path, status) in the order of names; no status is a dead link."""
    if len(above) >= MAX_DEPTH:
        raise InvalidArtifact(
            path=shown(real), problem=f"it lies more than {MAX_DEPTH} folders below its model"
        )
    for entry in sorted(os.scandir(real), key=lambda entry: entry.name):
        if entry.name == CACHE or not (prefix or keep(entry.name)):
            continue
        relative = f"{prefix}{entry.name}"
        target = _inside(entry.path, fence) if entry.is_symlink() else entry.path
        if entry.is_symlink() and not exists(Path(target)):
            yield relative, target, None
            continue
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
            raise InvalidArtifact(
                path=shown(entry.path), problem="it is neither a file nor a folder"
            )


def _inside(path: str, fence: tuple[str, ...]) -> str:
    """Return where the path leads. Raises InvalidArtifact."""
    target = os.path.realpath(path)
    if not any(os.path.commonpath((target, folder)) == folder for folder in fence):
        raise InvalidArtifact(
            path=shown(path),
            problem=f"it links to {shown(target)}, outside {' and '.join(map(shown, fence))}: "
            "copy the file there",
        )
    return target
