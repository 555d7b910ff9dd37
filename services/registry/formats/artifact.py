"""A read-only view of an artifact: one file, or the files below a folder."""

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from services.registry.formats.refusal import Refusal

MAX_FILES: Final = 100_000
MAX_DEPTH: Final = 50
MAX_HEADS: Final = 64  # files at the top that are looked into to recognise a format

_USUAL: Final = (
    *(".onnx", ".plan", ".engine", ".xml", ".pt", ".pth", ".pt2", ".skops", ".pkl", ".pickle"),
    *(".joblib", ".ubj", ".xgb", ".lgb", ".safetensors"),
)

# Bytes in memory, or in a mapped file.
Content = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file, or the files below a folder.

    `files` are paths relative to the folder, in order, each with its size in bytes; a single file
    has its own name. Links that lead out of the folder (and of `within`) are in `outside`, and what
    is neither a file nor a folder in `special`; neither is ever opened.
    """

    path: Path
    files: dict[str, int]
    outside: tuple[str, ...] = ()
    special: tuple[str, ...] = ()
    _real: dict[str, str] = field(default_factory=dict, repr=False)
    #: What archives list, by the file's name, so that each is opened once for all formats.
    listed: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.path.name

    def top(self) -> list[str]:
        """Return the files at the top, in order."""
        return [name for name in self.files if "/" not in name]

    def read(self, name: str, most: int, start: int = 0) -> bytes:
        """Return at most `most` bytes of a file from `start`, or b"" if there is no such file."""
        if name not in self._real:
            return b""
        with self._opened(name) as descriptor:
            parts, wanted = [], most
            while wanted > 0 and (part := os.pread(descriptor, min(wanted, 2**20), start)):
                parts.append(part)
                start += len(part)
                wanted -= len(part)
        return b"".join(parts)

    def heads(self, size: int) -> Iterator[tuple[str, bytes]]:
        """Yield the first files at the top, each with its first `size` bytes.

        Names that models usually have come first.
        """
        names = sorted(self.top(), key=lambda name: not name.endswith(_USUAL))
        for name in names[:MAX_HEADS]:
            yield name, self.read(name, size)

    def below(self, folder: str) -> "Artifact":
        """Return the part of the artifact below a folder of it, or one file of it. Raises
        Refusal."""
        folder = folder.strip("/")
        if folder in ("", "."):
            return self
        if folder in self.files:
            last = folder.rpartition("/")[2]
            files, real = {last: self.files[folder]}, {last: self._real[folder]}
            return Artifact(self.path / folder, files, _real=real)
        prefix = f"{folder}/"
        names = [name for name in self.files if name.startswith(prefix)]
        if not names:
            raise Refusal(f"{folder} is missing")
        return Artifact(
            self.path / folder,
            {name.removeprefix(prefix): self.files[name] for name in names},
            _real={name.removeprefix(prefix): self._real[name] for name in names},
        )

    def text(self, name: str, most: int) -> str:
        """Return a whole file as UTF-8 text. Raises Refusal if it is missing or longer than `most`
        bytes."""
        if name not in self.files:
            raise Refusal(f"{name} is missing")
        data = self.read(name, most + 1)
        if len(data) > most:
            raise Refusal(f"{name} has {self.files[name]} bytes, more than {most}")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise Refusal(f"{name} is not UTF-8 text") from None

    @contextmanager
    def mapped(self, name: str) -> Iterator[Content]:
        """Map a file for reading. Raises Refusal if it is missing or empty."""
        if name not in self._real:
            raise Refusal(f"{name} is missing")
        with self._opened(name) as descriptor:
            if not os.fstat(descriptor).st_size:
                raise Refusal(f"{name} is empty")
            with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
                yield content

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for reading. Raises Refusal if it is missing."""
        if name not in self._real:
            raise Refusal(f"{name} is missing")
        with self._opened(name) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Open a file, unless it became a link or something else since it was listed."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._real[name], flags)
        except OSError as error:
            raise Refusal(f"{name} cannot be read: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Refusal(f"{name} is not a file any more")
            yield descriptor
        except OSError as error:
            raise Refusal(f"{name} cannot be read: {error.strerror or error}") from None
        finally:
            os.close(descriptor)


def open_artifact(path: Path, within: tuple[Path, ...] = ()) -> Artifact:
    """List an artifact. Links may also lead into the folders of `within`. Raises Refusal."""
    top = os.path.realpath(path)
    if Path(top).is_file():
        return Artifact(path, {path.name: Path(top).stat().st_size}, _real={path.name: top})
    if not Path(top).is_dir():
        raise Refusal(f"{path.name} is neither a file nor a folder")
    listing = _Listing((top, *map(os.path.realpath, within)))
    try:
        listing.walk(top, "", (top,))
    except OSError as error:
        raise Refusal(f"{path.name} cannot be listed: {error.strerror}") from None
    order = sorted(listing.real)
    return Artifact(
        path,
        {name: listing.sizes[name] for name in order},
        tuple(sorted(listing.outside)),
        tuple(sorted(listing.special)),
        {name: listing.real[name] for name in order},
    )


class _Listing:
    def __init__(self, fence: tuple[str, ...]) -> None:
        self.real: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.outside: list[str] = []
        self.special: list[str] = []
        self._fence = fence
        self._seen = 0

    def walk(self, folder: str, prefix: str, above: tuple[str, ...]) -> None:
        """List what is below a folder; `above` are the real folders on the way to it."""
        if len(above) > MAX_DEPTH:
            raise Refusal(f"its folders are nested more than {MAX_DEPTH} deep")
        with os.scandir(folder) as entries:
            for entry in entries:
                self._seen += 1
                if self._seen > MAX_FILES:
                    raise Refusal(f"it has more than {MAX_FILES} files")
                self._add(entry, prefix + entry.name, above)

    def _add(self, entry: os.DirEntry[str], name: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(entry.path)
        if not any(real == top or real.startswith(f"{top}/") for top in self._fence):
            self.outside.append(name)
            return
        try:
            found = Path(real).lstat()
        except FileNotFoundError:
            return  # a link to nothing
        if stat.S_ISREG(found.st_mode):
            self.real[name], self.sizes[name] = real, found.st_size
        elif not stat.S_ISDIR(found.st_mode):
            self.special.append(name)
        elif real not in above:  # a link to a folder above would never end
            self.walk(real, f"{name}/", (*above, real))
