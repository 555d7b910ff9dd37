"""A source in memory that counts what is read of it, stops where it is told to, and lies."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from services.registry.core.errors import SourceUnavailable
from services.registry.core.source import Source
from services.registry.sources.archives import form_of
from services.registry.sources.origin import Listing, RemoteFile

CHUNK = 64 * 1024


@dataclass
class MemorySource:
    """Models by name, each with its files: `s3://memory/<model>` is a source.

    `digests` replace those of files. Reading stops for ever, or with an error, after so many bytes
    of a file that `holds` or `breaks` names, until the name is taken out.
    """

    models: dict[str, Mapping[str, bytes]]
    digests: dict[str, str] = field(default_factory=dict)
    holds: dict[str, int] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    read_bytes: int = 0
    open_files: int = 0
    most_open: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)

    def files(self, source: Source) -> Mapping[str, bytes]:
        return self.models[source.locator.partition("/")[2]]

    async def resolve(self, source: Source) -> Listing:
        files = tuple(
            RemoteFile(
                path,
                len(content),
                archive=form_of(path),
                digest=self.digests.get(path, f"sha256:{hashlib.sha256(content).hexdigest()}"),
            )
            for path, content in self.files(source).items()
        )
        return Listing(Source(source.scheme, source.locator, "1"), files, {"run": "7"})

    async def read(
        self, listing: Listing, file: RemoteFile, start: int = 0
    ) -> AsyncIterator[bytes]:
        content = self.files(listing.source)[file.path]
        self.open_files += 1
        self.most_open = max(self.most_open, self.open_files)
        try:
            for at in range(start, len(content), CHUNK):
                if at >= self.holds.get(file.path, len(content)):
                    self.held.set()
                    await asyncio.Event().wait()
                if at >= self.breaks.get(file.path, len(content)):
                    raise SourceUnavailable(source=listing.source, problem="it broke off")
                chunk = content[at : at + CHUNK]
                self.read_bytes += len(chunk)
                yield chunk
                await asyncio.sleep(0)
        finally:
            self.open_files -= 1
