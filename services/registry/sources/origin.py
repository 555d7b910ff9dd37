"""What every origin offers: a listing of the files at a source, and the bytes of each."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from services.registry.core.errors import UnsafeContent
from services.registry.core.source import Source, checked_path, shown

MAX_FILES: Final = 100_000

#: How an archive is packed; "" is a file that is none.
Archive = Literal["", "tar", "tar+gzip", "tar+zstd", "zip"]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at a source.

    An archive is fetched and verified like any other file. Its members, as
    `services.registry.sources.archives.unpack` yields them, then stand in its place: in the folder
    of its path.
    """

    path: str  # relative, "/" between its parts, with nothing in it that leads out of a folder
    size: int | None  # bytes; None where the origin does not say
    digest: str = ""  # "sha256:<hex>" where the origin knows it
    etag: str = ""  # tells whether the file is unchanged, where there is no digest
    archive: Archive = ""
    key: str = ""  # where its origin finds it, if not at its path

    def __post_init__(self) -> None:
        checked_path(self.path)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source at one revision, and what the origin says about them.

    `about` is provenance, such as a run id, a signature, tags, labels and media types.
    """

    source: Source  # with its revision
    files: tuple[RemoteFile, ...]
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse files that cannot lie in one folder together."""
        paths: set[str] = set()
        folders: set[str] = set()
        for file in self.files:
            if file.path in paths:
                raise UnsafeContent(
                    path=shown(file.path), problem="there are two files of that name"
                )
            paths.add(file.path)
            above = file.path.rpartition("/")[0]
            while above and above not in folders:
                folders.add(above)
                above = above.rpartition("/")[0]
            if len(paths) + len(folders) > MAX_FILES:
                raise UnsafeContent(
                    path=self.source, problem=f"it has more than {MAX_FILES} files and folders"
                )
        for path in paths & folders:
            raise UnsafeContent(path=shown(path), problem="it is both a file and a folder")


class Origin(Protocol):
    """Where files of one scheme come from.

    Every method raises errors of `services.registry.core.errors` only. None of them carries a
    credential.
    """

    async def resolve(self, source: Source) -> Listing:
        """List the files at a source, pinned.

        A source without a revision means what is there. One with a revision means that content:
        raises SourceChanged or SourceNotFound where it is no longer there.
        """
        ...

    def read(self, listing: Listing, file: RemoteFile, start: int = 0) -> AsyncIterator[bytes]:
        """Yield the bytes of a file, from byte `start` on, so that a fetch goes on after a break.

        Raises SourceChanged where the file is another one than listed, SourceTooLarge for one that
        does not end at its size, and ContentMismatch for one that is read from its start and has
        not the digest that it is listed with. A reader that goes on after a break
        compares the digest itself. Close what is not read to its end (`contextlib.aclosing`).
        """
        ...
