"""`hf://`: models on the Hugging Face hub, through huggingface-hub and its own cache.

The library's variables apply: HF_TOKEN, HF_HOME, HF_ENDPOINT, and HF_HUB_OFFLINE, with which only
what the cache holds can be read.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from services.common.errors import ShoalError
from services.registry.core.errors import (
    ExtraMissing,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from services.registry.core.source import Source, hub_parts
from services.registry.sources.origin import Listing, RemoteFile
from services.registry.sources.settings import OriginSettings
from services.registry.sources.streams import guarded, in_thread, of_file

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_SHA256: Final = 64  # hexadecimal digits; Git's own digests have 40


class _GivenUp(Exception):
    """Nobody waits for a download any more."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A repository on the hub, a revision of it, and a folder or file in it ("" for all)."""

    repository: str
    revision: str | None
    inside: str

    @classmethod
    def of(cls, source: Source) -> "_Place":
        repository, revision, inside = hub_parts(source.locator)
        return cls(repository, source.revision or unquote(revision) or None, inside)

    def path(self, name: str) -> str | None:
        """Return what a file of the repository is called here, or None for one beside it."""
        if name.startswith(".git"):
            return None
        if name == self.inside:
            return name.rpartition("/")[2]
        prefix = f"{self.inside}/" if self.inside else ""
        return name.removeprefix(prefix) if name.startswith(prefix) else None


class Hub:
    """Reads repositories of the hub, as the library downloads them."""

    def __init__(self, settings: OriginSettings) -> None:
        try:
            import huggingface_hub  # noqa: F401
        except ImportError:
            raise ExtraMissing(scheme="hf", extra="hf") from None
        self._settings = settings

    async def resolve(self, source: Source) -> Listing:
        place = _Place.of(source)
        try:
            commit, found, about = await in_thread(
                lambda: _listed(place, source, self._settings), 2 * self._settings.idle_timeout
            )
        except TimeoutError:
            raise SourceUnavailable(
                source=source, problem="the hub does not answer in time"
            ) from None
        files = tuple(
            replace(file, path=path, key=file.path)
            for file in sorted(found, key=lambda file: file.path)
            if (path := place.path(file.path)) is not None
        )
        if not files:
            raise SourceNotFound(source=source, problem=f"nothing is below {place.inside!r}")
        return Listing(replace(source, revision=commit), files, about)

    async def read(
        self, listing: Listing, file: RemoteFile, start: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """Yield a file out of the library's cache, into which it is downloaded first.

        The first chunk comes once the download has ended. What this has downloaded leaves the cache
        when it has been read: nobody else counts its bytes.
        """
        place = _Place.of(listing.source)
        wanted = threading.Event()
        wanted.set()
        try:
            path, fresh = await in_thread(
                lambda: _download(place, file.key, listing.source, wanted.is_set)
            )
        finally:
            wanted.clear()
        content = of_file(path, start)
        async with aclosing(guarded(content, listing, file, start, self._settings)) as chunks:
            async for chunk in chunks:
                yield chunk
        if fresh:
            await asyncio.to_thread(_forget, path)


def _listed(
    place: _Place, source: Source, settings: OriginSettings
) -> tuple[str, list[RemoteFile], dict[str, str]]:
    """Return the commit, the files, and what the hub says about them."""
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        if constants.HF_HUB_OFFLINE:
            folder = Path(
                snapshot_download(place.repository, revision=place.revision, local_files_only=True)
            )
            return folder.name, list(_cached(folder)), {}
        info = HfApi().model_info(
            place.repository,
            revision=place.revision,
            files_metadata=True,
            timeout=settings.idle_timeout,
        )
    except Exception as error:
        raise _told(error, source) from None
    return info.sha or "", [_sibling(one) for one in info.siblings or ()], _about(info)


def _cached(folder: Path) -> Iterable[RemoteFile]:
    """Yield the files of a snapshot in the cache: links to blobs, which are named by digests."""
    for path in folder.rglob("*"):
        if path.is_file():
            real = path.resolve()
            blob = real.name if real.parent.name == "blobs" else ""
            digest = f"sha256:{blob}" if len(blob) == _SHA256 else ""
            name = path.relative_to(folder).as_posix()
            yield RemoteFile(name, real.stat().st_size, digest, "" if digest else blob)


def _sibling(file: "RepoSibling") -> RemoteFile:
    digest = f"sha256:{file.lfs.sha256}" if file.lfs else ""
    return RemoteFile(file.rfilename, file.size, digest, "" if digest else file.blob_id or "")


def _about(info: "ModelInfo") -> dict[str, str]:
    said: Mapping[str, Any] = {
        "library": info.library_name,
        "task": info.pipeline_tag,
        "license": info.card_data.get("license") if info.card_data else None,
        "tags": ",".join(info.tags or ()),
    }
    return {key: str(value) for key, value in said.items() if value}


def _download(
    place: _Place, name: str, source: Source, going_on: Callable[[], bool]
) -> tuple[Path, bool]:
    """Return a file's path in the cache, and whether it is there since now."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # its stubs are not read
        """A bar that is never drawn; the library calls it with each chunk."""

        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **{**more, "disable": True})

        def update(self, n: float | None = 1) -> bool:
            if not going_on():
                raise _GivenUp
            return bool(super().update(n))

    try:
        held = try_to_load_from_cache(place.repository, name, revision=place.revision)
        path = hf_hub_download(place.repository, name, revision=place.revision, tqdm_class=Bar)
        return Path(path), not isinstance(held, str)
    except Exception as error:
        told = _told(error, source)
        if isinstance(told, SourceNotFound) and source.revision:
            raise SourceChanged(source=source, problem=f"{name} is gone") from None
        raise told from None


def _forget(path: Path) -> None:
    """Remove a file from the cache: the link in its snapshot, and the blob."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def _told(error: Exception, source: Source) -> ShoalError:
    """Return an error of ours; the library's texts name addresses and request ids."""
    from huggingface_hub import constants, errors

    if isinstance(error, ShoalError):
        return error
    match error:
        case errors.GatedRepoError():
            return SourceDenied(
                source=source,
                problem="it is gated. Accept its conditions on the hub, and set HF_TOKEN",
            )
        case errors.LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            return SourceNotFound(
                source=source,
                problem="the cache of the hub does not have it, and HF_HUB_OFFLINE is set",
            )
        case errors.LocalEntryNotFoundError():
            return SourceUnavailable(source=source, problem="the hub cannot be reached")
        case (
            errors.RepositoryNotFoundError()
            | errors.RevisionNotFoundError()
            | errors.EntryNotFoundError()
        ):
            return SourceNotFound(
                source=source,
                problem="the hub has no such repository, revision or file, or it is private and "
                "HF_TOKEN does not open it",
            )
        case errors.HfHubHTTPError():
            status = error.response.status_code
            if status in (401, 403):
                return SourceDenied(source=source, problem=f"the hub answers {status}")
            return SourceUnavailable(source=source, problem=f"the hub answers {status}")
        case errors.HFValidationError():
            return SourceNotFound(source=source, problem="the hub allows no such name")
    return SourceUnavailable(source=source, problem=f"the hub fails ({type(error).__name__})")
