"""Operations on imports, uploads and the store's disk, at the Registry."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from shoal import names
from shoal.client import stored
from shoal.client.catalogue import STAGING, register
from shoal.client.errors import CallFailed, Unavailable
from shoal.client.files import LocalFile, chunks, local_files
from shoal.client.operations import Call, Operation, Pause, Work
from shoal.client.pages import all_pages
from shoal.client.resources import ModelVersion
from shoal.registry.v1 import registry_service_pb2 as registry

_BREAKS: Final = 10  # in a row without a byte between them, after which an upload is given up
_PAUSE: Final = 0.5  # seconds between two attempts of an upload

# Called with the bytes that the Registry has, and all of them.
Progress = Callable[[int, int], None]


def start_imports(
    source: str,
    model: str = "",
    *,
    version: int = 0,
    pending: bool = False,
    declared_memory: Mapping[str, int] | None = None,
    request_id: str = "",
    watch: bool = False,
    timeout: float | None = STAGING,
) -> Operation[list[stored.Import]]:
    """Start to fetch files into the Registry's store, to be registered as versions.

    Args:
        source: Where the files come from, such as "s3://bucket/model" or "file:///folder".
        model: The model's name; "" for all models of a source that is a Triton model repository.
        version: The number of the version. 0 means the highest version folder if the source has
            one, else the next free number.
        pending: Whether the versions must be approved before they can be the default.
        declared_memory: Bytes that each version takes, by resource ("ram", "gpu:0").
        request_id: A repeated call with the same ID returns what the first one started.
        watch: Whether to import the next version whenever the source means something else.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        One import for each version that is not registered from there yet.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = registry.StartImportsRequest(
        parent=names.model_name(model or "-"),
        source=source,
        version=version,
        pending=pending,
        declared_memory=declared_memory,
        request_id=request_id,
        watch=watch,
    )
    reply = yield Call("registry", "StartImports", request, timeout)
    return [stored.import_(one) for one in reply.imports]


def source_watches(*, timeout: float | None = None) -> Operation[list[stored.SourceWatch]]:
    """Return the sources that are watched.

    Args:
        timeout: Seconds for each call. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = registry.ListSourceWatchesRequest()
    found = yield from all_pages("registry", "ListSourceWatches", request, timeout)
    return [stored.source_watch(one) for page in found for one in page.source_watches]


def delete_source_watch(
    id: str,  # noqa: A002
    *,
    timeout: float | None = None,
) -> Operation[None]:
    """End the watch of a source. What was registered from it stays.

    Args:
        id: The ID of the watch.
        timeout: Seconds for the call. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = registry.DeleteSourceWatchRequest(name=f"sourceWatches/{id}")
    yield Call("registry", "DeleteSourceWatch", request, timeout)


def imports(model: str = "", *, timeout: float | None = None) -> Operation[list[stored.Import]]:
    """Return the imports that are under way or ended within a day, the newest first.

    Args:
        model: The model's name; "" for the imports of all models.
        timeout: Seconds for each page of the list. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    parent = names.model_name(model) if model else ""
    request = registry.ListImportsRequest(parent=parent)
    found = yield from all_pages("registry", "ListImports", request, timeout)
    return [stored.import_(one) for page in found for one in page.imports]


def cancel_import(id: str, *, timeout: float | None = None) -> Operation[stored.Import]:  # noqa: A002
    """End an import whose files are still arriving.

    Args:
        id: The ID of the import.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The import. Its state is CANCELLED, unless it had come too far.

    Raises:
        NotFound: There is no such import.
        CallFailed: The call was refused for another reason, or nobody answered.
    """
    request = registry.CancelImportRequest(name=f"imports/{id}")
    reply = yield Call("registry", "CancelImport", request, timeout)
    return stored.import_(getattr(reply, "import"))


def upload(
    model: str,
    path: str | os.PathLike[str],
    *,
    version: int = 0,
    pending: bool = False,
    declared_memory: Mapping[str, int] | None = None,
    progress: Progress | None = None,
    timeout: float | None = STAGING,
) -> Operation[ModelVersion]:
    """Send files of this machine to the Registry, and register them as a version of a model.

    What the Registry has already is not sent. After a broken connection the upload goes on where it
    was; after a failure, the same call does.

    Args:
        model: The model's name.
        path: A model's folder (config.pbtxt and numbered version folders), the content of one
            version folder, or a single file.
        version: The number of the version. 0 means the highest version folder if there is one, else
            the next free number.
        pending: Whether the version must be approved before it can be the default.
        declared_memory: Bytes that the version takes, by resource ("ram", "gpu:0").
        progress: Called with the bytes that the Registry has, and all of them.
        timeout: Seconds for each call but those that send files, which have no limit. None means
            the client's own.

    Returns:
        The version. Its state is INVALID if it cannot be served; `invalid_reason` says why.

    Raises:
        CallFailed: A call was refused, or the connection broke too often.
        OSError: A file cannot be read.
        ValueError: There is nothing to send.
    """
    files = yield Work(lambda: local_files(Path(path), version))
    digest = yield from _send(files, progress or (lambda done, total: None), timeout)
    return (
        yield from register(
            model,
            f"upload://{digest}",
            version=version,
            pending=pending,
            declared_memory=declared_memory,
            timeout=timeout,
        )
    )


def _send(files: list[LocalFile], progress: Progress, timeout: float | None) -> Operation[str]:
    """Send what the Registry lacks, and return the digest of the upload."""
    by_content = {file.sha256: file for file in files}
    total = sum(file.size for file in by_content.values())
    announced = registry.BeginUploadRequest(
        files=[
            registry.UploadedFile(path=file.path, size=file.size, sha256=file.sha256)
            for file in files
        ]
    )
    breaks, best = 0, -1
    while True:
        reply = yield Call("registry", "BeginUpload", announced, timeout)
        lacking = sum(by_content[one.sha256].size - one.received for one in reply.missing)
        progress(total - lacking, total)
        if not reply.missing:
            return str(reply.upload)
        breaks, best = (0, total - lacking) if total - lacking > best else (breaks + 1, best)
        try:
            for one in reply.missing:
                file = by_content[one.sha256]
                before = total - lacking
                sent = _counted(chunks(reply.upload, file, one.received), before, total, progress)
                yield Call("registry", "UploadFile", sent, math.inf, repeatable=False)
                lacking -= file.size - one.received
        except CallFailed as error:
            if not isinstance(error, Unavailable) or breaks >= _BREAKS:
                raise
            yield Pause(_PAUSE)


def _counted(
    messages: Iterator[registry.UploadFileRequest], done: int, total: int, progress: Progress
) -> Iterator[registry.UploadFileRequest]:
    """Yield the messages, and tell how much is done with those before."""
    for message in messages:
        progress(done, total)
        yield message
        done += len(message.data)
    progress(done, total)


def disk_usage(*, timeout: float | None = None) -> Operation[stored.DiskUsage]:
    """Return what the store takes on disk, and what has left it lately.

    Args:
        timeout: Seconds for the call. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    reply = yield Call("registry", "GetDiskUsage", registry.GetDiskUsageRequest(), timeout)
    return stored.disk_usage(reply)


def collect_garbage(
    *, dry_run: bool = False, timeout: float | None = None
) -> Operation[list[stored.Departure]]:
    """Remove what nothing needs from the store, and what exceeds its disk budget.

    Args:
        dry_run: Whether to only say what would be removed.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        What was removed.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = registry.CollectGarbageRequest(dry_run=dry_run)
    reply = yield Call("registry", "CollectGarbage", request, timeout)
    return [stored.departure(one) for one in reply.departures]
