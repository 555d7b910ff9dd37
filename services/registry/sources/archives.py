"""Archives, unpacked so that nothing in them can leave its folder, or fill the disk.

Only files and folders come out, none of them executable. A link, a device or a name that leads
elsewhere is refused, as is everything that is not what the archive says of it.
"""

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final, Never, Self

from services.registry.core.errors import (
    ContentMismatch,
    SourceTooLarge,
    UnsafeContent,
)
from services.registry.core.source import checked_path, shown
from services.registry.sources.origin import MAX_FILES, Archive
from services.registry.sources.streams import CHUNK

# An archive may unpack to a gibibyte, and beyond that to so many times its own size.
_ALWAYS: Final = 2**30  # bytes
_MAX_RATIO: Final = 200
# What is held in memory, in bytes: a long name or a pax header, and the directory of a zip.
_MAX_HEADER: Final = 2**20
_MAX_DIRECTORY: Final = 2**26

_SUFFIXES: Final[dict[str, Archive]] = {
    ".tar": "tar",
    ".tar.gz": "tar+gzip",
    ".tgz": "tar+gzip",
    ".tar.zst": "tar+zstd",
    ".zip": "zip",
}


def form_of(path: str) -> Archive:
    """Return how a file is packed, by its name; "" for one that is no archive."""
    name = path.lower()
    return next((form for suffix, form in _SUFFIXES.items() if name.endswith(suffix)), "")


class GivenUp(Exception):
    """Nobody wants the files of an archive any more."""


def unpack(
    archive: Path,
    form: Archive,
    folder: Path,
    max_bytes: int,
    going_on: Callable[[], bool] = lambda: True,
) -> tuple[str, ...]:
    """Unpack an archive into an existing folder, and return the paths of its files in it.

    This blocks: run it in a thread. It raises GivenUp once `going_on()` is false. The folder may
    hold other files, and after an error what was unpacked before: whoever made it removes it.

    Raises UnsafeContent for what must not be written, SourceTooLarge for more than `max_bytes`,
    ContentMismatch for an archive that is damaged or not what it says, and OSError.
    """
    target = _Target(folder, archive.stat().st_size, max_bytes, going_on)
    unpacked = _unzip if form == "zip" else _untar
    try:
        unpacked(archive, form, target)
    except _DAMAGE as error:
        raise ContentMismatch(
            path=archive.name, problem=f"it is a damaged archive ({shown(str(error))})"
        ) from None
    except (NotImplementedError, RuntimeError) as error:  # zipfile's words for what it cannot read
        raise UnsafeContent(
            path=archive.name, problem=f"it cannot be unpacked: {shown(str(error))}"
        ) from None
    return tuple(target.files)


_DAMAGE: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    OverflowError,
    ValueError,  # names that are not UTF-8, numbers that are none
)


class _Target:
    """The folder that members are written to, within bounds."""

    def __init__(
        self, folder: Path, packed: int, max_bytes: int, going_on: Callable[[], bool]
    ) -> None:
        self.folder = folder
        self.files: list[str] = []
        self._folders = {""}
        self._members = 0
        self._bytes = 0
        self._max_bytes = max_bytes
        self._bomb = max(_ALWAYS, packed * _MAX_RATIO)
        self._going_on = going_on

    def path(self, name: str) -> str:
        """Return a member's path without what programs put around it; "" for the folder itself."""
        self._count(name)
        trimmed = name.removesuffix("/")
        while trimmed.startswith("./"):
            trimmed = trimmed[2:]
        return "" if trimmed in ("", ".") and name else checked_path(trimmed)

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it, each of which counts as a member."""
        if path in self._folders:
            return
        if above := path.rpartition("/")[0]:
            self.make_folder(above)
        self._count(path)
        self._folders.add(path)
        try:
            (self.folder / path).mkdir(exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UnsafeContent(
                path=shown(path), problem="its archive has a file of that name, too"
            ) from None

    def write(self, path: str, size: int, content: IO[bytes]) -> None:
        """Write a file that has the size that the archive says."""
        self._allow(path, size)
        if "/" in path:
            self.make_folder(path.rpartition("/")[0])
        have = 0
        try:
            with (self.folder / path).open("xb") as file:
                while chunk := content.read(CHUNK):
                    have += len(chunk)
                    if have > size:
                        break
                    self._bytes += len(chunk)
                    self._allow(path, 0)
                    file.write(chunk)
        except (FileExistsError, IsADirectoryError):
            raise UnsafeContent(
                path=shown(path), problem="its archive has two members of that name"
            ) from None
        if have != size:
            raise ContentMismatch(
                path=shown(path), problem=f"its archive says {size} bytes, and it has others"
            )
        self.files.append(path)

    def _count(self, name: str) -> None:
        self._members += 1
        if self._members > MAX_FILES:
            raise UnsafeContent(
                path=shown(name), problem=f"its archive has more than {MAX_FILES} members"
            )

    def _allow(self, path: str, size: int) -> None:
        if not self._going_on():
            raise GivenUp
        if size < 0:
            raise ContentMismatch(path=shown(path), problem="its archive says a negative size")
        total = self._bytes + size
        if total > self._max_bytes:
            raise SourceTooLarge(
                path=shown(path),
                problem=f"its archive unpacks to more than {self._max_bytes} bytes "
                "(the setting origins.max_bytes)",
            )
        if total > self._bomb:
            raise UnsafeContent(
                path=shown(path),
                problem=f"its archive unpacks to more than {_MAX_RATIO} times its own size",
            )


# --- tar ------------------------------------------------------------------------------------------


class _Member(tarfile.TarInfo):
    """A member whose headers are bounded: tarfile reads them into memory, as large as they say.

    A header that is damaged is an error. To tarfile it is the end of the archive.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # not in typeshed
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type == tarfile.GNUTYPE_SPARSE:
            _refuse_sparse(self.name)
        if self.type in _IN_MEMORY and not 0 <= self.size <= _MAX_HEADER:
            raise UnsafeContent(
                path=shown(self.name), problem=f"it has a header of {self.size} bytes"
            )
        return super()._proc_member(archive)  # type: ignore[misc]  # not in typeshed

    def _proc_gnusparse_00(self, *_: object) -> Never:
        _refuse_sparse(self.name)

    def _proc_gnusparse_01(self, *_: object) -> Never:
        _refuse_sparse(self.name)

    def _proc_gnusparse_10(self, *_: object) -> Never:
        _refuse_sparse(self.name)


_IN_MEMORY: Final = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def _refuse_sparse(name: str) -> Never:
    raise UnsafeContent(
        path=shown(name), problem="it is a sparse file: pack it without tar's option --sparse"
    )


def _untar(archive: Path, form: Archive, target: _Target) -> None:
    with _tar(archive, form) as opened:
        for member in opened:
            name = shown(member.name)
            if member.issym() or member.islnk():
                _refuse_link(member.name, member.linkname, symbolic=member.issym())
            path = target.path(member.name)
            if member.isdir():
                target.make_folder(path)
            elif member.isreg():
                content = opened.extractfile(member)
                assert content is not None, "a regular file"
                target.write(path, member.size, content)
            else:
                raise UnsafeContent(path=name, problem="it is a device, a pipe or a socket")


@contextmanager
def _tar(archive: Path, form: Archive) -> Iterator[tarfile.TarFile]:
    with ExitStack() as stack:
        raw: Any = stack.enter_context(archive.open("rb"))
        if form == "tar+gzip":
            raw = stack.enter_context(gzip.GzipFile(fileobj=raw))
        elif form == "tar+zstd":
            raw = stack.enter_context(_zstd(raw))
        yield stack.enter_context(
            tarfile.open(fileobj=raw, mode="r|", tarinfo=_Member, bufsize=2**16)
        )


@contextmanager
def _zstd(raw: IO[bytes]) -> Iterator[Any]:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(
            raw, read_across_frames=True
        ) as content:
            yield content
    except zstandard.ZstdError as error:
        raise tarfile.ReadError(str(error)) from None


def _refuse_link(name: str, leads_to: str, *, symbolic: bool) -> Never:
    parts = [*name.split("/")[:-1]] if symbolic else []
    for part in leads_to.split("/"):
        if part == ".." and not parts:
            parts = [".."]
            break
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if leads_to.startswith("/") or parts[:1] == [".."]:
        problem = f"it is a link to {shown(leads_to)}, outside its archive"
    else:
        problem = f"it is a link to {shown(leads_to)}: pack the file itself (tar --dereference)"
    raise UnsafeContent(path=shown(name), problem=problem)


# --- zip ------------------------------------------------------------------------------------------


def _unzip(archive: Path, _: Archive, target: _Target) -> None:
    with archive.open("rb") as raw:
        end = zipfile._EndRecData(raw)  # type: ignore[attr-defined]  # read before ZipFile does
    if end and end[zipfile._ECD_SIZE] > _MAX_DIRECTORY:  # type: ignore[attr-defined]
        raise UnsafeContent(
            path=archive.name, problem=f"its directory has more than {_MAX_DIRECTORY} bytes"
        )
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            path = target.path(member.orig_filename)
            mode = member.external_attr >> 16
            if member.flag_bits & 1:
                raise UnsafeContent(path=shown(path), problem="it is encrypted")
            if stat.S_ISLNK(mode):
                leads_to = opened.open(member).read(4096).decode(errors="replace")
                _refuse_link(path, leads_to, symbolic=True)
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnsafeContent(path=shown(path), problem="it is a device, a pipe or a socket")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UnsafeContent(
                    path=shown(path), problem="it is packed by another method than deflate"
                )
            if member.is_dir():
                target.make_folder(path)
            else:
                with opened.open(member) as content:
                    target.write(path, member.file_size, content)
