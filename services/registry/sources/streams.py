"""Streams of bytes with an end: never idle for long, never larger than announced or allowed."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from services.registry.core.errors import (
    ContentMismatch,
    SourceChanged,
    SourceNotFound,
    SourceTooLarge,
    SourceUnavailable,
)
from services.registry.core.source import shown
from services.registry.sources.origin import Listing, RemoteFile
from services.registry.sources.settings import OriginSettings

T = TypeVar("T")

CHUNK: Final = 2**20  # bytes


async def guarded(
    chunks: AsyncGenerator[bytes, None],
    listing: Listing,
    file: RemoteFile,
    start: int,
    settings: OriginSettings,
) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a file from byte `start` on, and close the stream whatever happens.

    Raises SourceUnavailable if no chunk comes in time or the stream ends before the file does,
    SourceTooLarge if it goes on after the file's end, SourceChanged if the file is gone, and
    ContentMismatch if a file that is read from its first byte to its last has not the digest that
    it is listed with.
    """
    limit = settings.max_bytes if file.size is None else file.size
    if limit > settings.max_bytes:
        raise _too_large(file, settings)
    have = start
    digest = hashlib.sha256() if file.digest and start == 0 else None
    async with aclosing(chunks):
        while True:
            try:
                async with asyncio.timeout(settings.idle_timeout):
                    chunk = await anext(chunks, b"")
            except TimeoutError:
                problem = f"it has sent nothing for {settings.idle_timeout:g} s"
                raise SourceUnavailable(source=listing.source, problem=problem) from None
            except SourceNotFound:
                problem = f"{shown(file.path)} is gone"
                raise SourceChanged(source=listing.source, problem=problem) from None
            except OSError as error:
                problem = error.strerror or type(error).__name__
                raise SourceUnavailable(source=listing.source, problem=problem) from None
            if not chunk:
                break
            have += len(chunk)
            if have > limit:
                raise _too_large(file, settings)
            if digest is not None:
                digest.update(chunk)
            yield chunk
    if file.size is not None and have < file.size:
        raise SourceUnavailable(
            source=listing.source,
            problem=f"{shown(file.path)} broke off after {have} of {file.size} bytes",
        )
    if digest is not None and file.digest != f"sha256:{digest.hexdigest()}":
        raise ContentMismatch(
            path=shown(file.path),
            problem=f"its digest is sha256:{digest.hexdigest()} and not {file.digest}",
        )


def _too_large(file: RemoteFile, settings: OriginSettings) -> SourceTooLarge:
    if file.size is None or file.size > settings.max_bytes:
        problem = f"a file may have {settings.max_bytes} bytes (the setting origins.max_bytes)"
    else:
        problem = f"it goes on after the {file.size} bytes that were announced"
    return SourceTooLarge(path=shown(file.path), problem=problem)


async def in_thread(work: Callable[[], T], timeout: float | None = None) -> T:
    """Run work that blocks in a thread of its own; it is abandoned if the caller is cancelled.

    The process does not wait for such a thread when it ends. Raises TimeoutError.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        if not done.done():
            set_outcome()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # whatever it is, it is the caller's
            outcome = partial(done.set_exception, error)
        else:
            outcome = partial(done.set_result, result)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="shoal-source", daemon=True).start()
    async with asyncio.timeout(timeout):
        return await done


async def of_file(path: Path, start: int) -> AsyncGenerator[bytes, None]:
    """Yield what a file on this host holds from byte `start` on. Raises OSError."""
    opened = await asyncio.to_thread(path.open, "rb")
    with opened:
        await asyncio.to_thread(opened.seek, start)
        while chunk := await asyncio.to_thread(opened.read, CHUNK):
            yield chunk
