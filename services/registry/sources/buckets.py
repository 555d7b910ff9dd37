"""Object storage: `s3://`, `gs://` and `az://`, through obstore."""

import hashlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from services.common.errors import ShoalError
from services.registry.core.errors import (
    ExtraMissing,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    UnsafeContent,
)
from services.registry.core.source import Source
from services.registry.sources.archives import form_of
from services.registry.sources.origin import MAX_FILES, Listing, RemoteFile
from services.registry.sources.settings import OriginSettings
from services.registry.sources.streams import CHUNK, guarded

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

# A whole download has no limit in time; `read_timeout` ends those that stall.
_NO_LIMIT: Final = timedelta(days=365)
_RETRIES: Final = 3
# What the texts of obstore may say without giving away a signed URL.
_STATUS: Final = re.compile(r"status(?: code)?: (\d{3})")
_TELLING: Final = re.compile(
    r"NoSuchBucket|NoSuchKey|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken"
    r"|PermanentRedirect|AuthorizationHeaderMalformed|Account must be specified|credential error"
    r"|dns error|[Cc]onnection refused|timed out|certificate|status(?: code)?: \d{3}",
)


class Buckets:
    """Reads a file or a whole prefix of a bucket.

    Addresses and credentials are the Registry's own: obstore takes them from the variables of each
    service (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
    """

    def __init__(self, scheme: str, settings: OriginSettings) -> None:
        try:
            import obstore.store  # noqa: F401
        except ImportError:
            raise ExtraMissing(scheme=scheme, extra=scheme) from None
        self._settings = settings

    async def resolve(self, source: Source) -> Listing:
        bucket, _, prefix = source.locator.partition("/")
        try:
            store = self._store(source.scheme, bucket)
            files = [file async for file in _below(store, prefix, source)]
            if not files and prefix:
                files = [await _single(store, prefix)]
        except Exception as error:
            raise _told(error, source) from None
        if not files:
            raise SourceNotFound(source=source, problem="the bucket is empty")
        revision = _revision(files)
        if source.revision not in ("", revision):
            raise SourceChanged(source=source, problem="files were added, removed or written")
        return Listing(replace(source, revision=revision), tuple(files))

    def read(
        self, listing: Listing, file: RemoteFile, start: int = 0
    ) -> AsyncGenerator[bytes, None]:
        chunks = self._chunks(listing, file, start)
        return guarded(chunks, listing, file, start, self._settings)

    async def _chunks(
        self, listing: Listing, file: RemoteFile, start: int
    ) -> AsyncGenerator[bytes, None]:
        import obstore

        if start == file.size:
            return
        source = listing.source
        bucket = source.locator.partition("/")[0]
        options: GetOptions = {"if_match": file.etag or None}
        if start:
            options["range"] = {"offset": start}
        try:
            store = self._store(source.scheme, bucket)
            found = await obstore.get_async(store, file.key, options=options)
            async for chunk in found.stream(min_chunk_size=CHUNK):
                yield bytes(chunk)
        except Exception as error:
            raise _told(error, source) from None

    def _store(self, scheme: str, bucket: str) -> "ObjectStore":
        from obstore.store import AzureStore, GCSStore, S3Store

        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=self._settings.connect_timeout),
            "read_timeout": timedelta(seconds=self._settings.idle_timeout),
            "timeout": _NO_LIMIT,
        }
        retry: RetryConfig = {
            "max_retries": _RETRIES,
            "retry_timeout": timedelta(seconds=self._settings.idle_timeout),
        }
        match scheme:
            case "gs":
                return GCSStore(bucket, client_options=client, retry_config=retry)
            case "az":
                return AzureStore(bucket, client_options=client, retry_config=retry)
        endpoint = self._settings.s3_endpoint or next(
            filter(
                None,
                map(os.environ.get, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")),
            ),
            None,
        )
        if endpoint is None:
            return S3Store(bucket, client_options=client, retry_config=retry)
        client["allow_http"] = endpoint.startswith("http://")
        return S3Store(bucket, endpoint=endpoint, client_options=client, retry_config=retry)


async def _below(store: "ObjectStore", prefix: str, source: Source) -> AsyncIterator[RemoteFile]:
    """Yield the files below a prefix in the order of their paths."""
    import obstore

    found: dict[str, RemoteFile] = {}
    async for batch in obstore.list(store, prefix=prefix or None, chunk_size=1000):
        for one in batch:
            path = one["path"].removeprefix(prefix).removeprefix("/")
            if path:
                etag = one["e_tag"] or ""
                found[path] = RemoteFile(path, one["size"], etag=etag, key=one["path"])
        if len(found) > MAX_FILES:
            raise UnsafeContent(path=source, problem=f"it has more than {MAX_FILES} files")
    folders = {path[:end] for path in found for end, letter in enumerate(path) if letter == "/"}
    for path in sorted(found):
        # An empty object that stands for a folder.
        if found[path].size or path not in folders:
            yield found[path]


async def _single(store: "ObjectStore", key: str) -> RemoteFile:
    import obstore

    one = await obstore.head_async(store, key)
    name = key.rpartition("/")[2]
    return RemoteFile(name, one["size"], etag=one["e_tag"] or "", archive=form_of(name), key=key)


def _revision(files: Iterable[RemoteFile]) -> str:
    """Return a digest of names, sizes and ETags."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.etag}\n".encode())
    return f"etags:{digest.hexdigest()}"


def _told(error: Exception, source: Source) -> ShoalError:
    """Return an error of ours. The texts of obstore may hold signed URLs: they stay here."""
    from obstore import exceptions

    if isinstance(error, ShoalError):
        return error
    text = str(error)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    detail = f" ({found[0]})" if (found := _TELLING.search(text)) else ""
    if isinstance(error, exceptions.NotFoundError | FileNotFoundError) or status == 404:
        return SourceNotFound(source=source, problem=f"no bucket or file has that name{detail}")
    if isinstance(error, exceptions.PreconditionError) or status == 412:
        return SourceChanged(source=source, problem="a file was written while it was read")
    if status in (401, 403) or isinstance(
        error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
    ):
        return SourceDenied(source=source, problem=f"its server refuses them{detail}")
    if isinstance(error, exceptions.InvalidPathError):
        return UnsafeContent(
            path=source, problem="a key in it has an empty part, '.' or '..' between slashes"
        )
    if isinstance(error, exceptions.BaseError):
        return SourceUnavailable(source=source, problem=f"its storage fails{detail}")
    raise error
