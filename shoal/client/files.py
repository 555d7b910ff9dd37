"""The files of a folder on this machine, as an upload announces and sends them."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal import names
from shoal.registry.v1 import registry_service_pb2 as registry

CHUNK: Final = 1 << 20  # bytes sent at a time


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine, and the path that it is to have below the model's folder."""

    path: str
    local: Path
    size: int
    sha256: str


def local_files(top: Path, version: int) -> list[LocalFile]:
    """Return what one version needs of a folder, or a single file as the content of a version.

    `version` 0 means the highest version folder. Hidden files and Python's caches are left out.
    Raises OSError, and ValueError where there is nothing to send.
    """
    found = {top.name: top} if top.is_file() else dict(_below(top))
    numbers = {number for path in found if (number := _version_of(path))}
    if version and numbers and version not in numbers:
        raise ValueError(f"{top} has no folder for version {version}")
    chosen = version or max(numbers, default=0)
    files = [
        _read(path, local) for path, local in found.items() if _version_of(path) in (None, chosen)
    ]
    if not files:
        raise ValueError(f"{top} has no files to upload")
    return files


def chunks(upload: str, file: LocalFile, offset: int) -> Iterator[registry.UploadFileRequest]:
    """Yield the messages that send a file from `offset` on. Raises OSError."""
    with file.local.open("rb") as opened:
        opened.seek(offset)
        data = opened.read(CHUNK)
        yield registry.UploadFileRequest(
            upload=upload, sha256=file.sha256, offset=offset, data=data
        )
        while data := opened.read(CHUNK):
            yield registry.UploadFileRequest(data=data)


def _below(top: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, files in os.walk(top, onerror=_raise):
        folders[:] = sorted(name for name in folders if _is_shown(name))
        for name in sorted(filter(_is_shown, files)):
            local = Path(folder) / name
            yield local.relative_to(top).as_posix(), local


def _raise(error: OSError) -> None:
    raise error


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


def _version_of(path: str) -> int | None:
    folder, slash, _ = path.partition("/")
    return names.parse_version(folder) if slash else None


def _read(path: str, local: Path) -> LocalFile:
    with local.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return LocalFile(path, local, opened.tell(), sha256)
