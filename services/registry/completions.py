"""The versions that wait for a server to complete their configs, for those who drive servers."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from services.common.errors import NotReady
from services.registry.catalogue.store import Snapshot
from services.registry.catalogue.writer import Catalogue
from services.registry.core.catalogue import Entry
from services.registry.core.completion import Queue
from shoal.names import ModelVersionName

_IDLE_SECONDS: Final = 60.0


class Completions:
    """The queue of versions to complete, as the catalogue has them."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._queue = Queue()
        self._news = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """End every `watch`."""
        self._closed = True
        self._wake()

    async def follow(self) -> None:
        """Follow the catalogue, for ever. Raises NotReady once its log is closed."""
        news = self._catalogue.log.follow(0, self._catalogue.store.snapshot, _IDLE_SECONDS)
        async with aclosing(news):
            async for item in news:
                if isinstance(item, Snapshot):
                    self._queue = self._queue.successor(item.entries)
                    self._wake()
                elif self._queue.replace(item.changed):
                    self._wake()

    async def watch(self) -> AsyncGenerator[tuple[tuple[ModelVersionName, ...], int]]:
        """Yield the versions in their order, and how many of them somebody asks for, now and after
        each change.

        Raises NotReady once it is closed.
        """
        while not self._closed:
            news = self._news
            yield self._queue.order(), self._queue.requested
            await news.wait()
        raise NotReady(service="the Registry", cause="it is stopping", retry_after=1.0)

    async def ask(self, name: ModelVersionName) -> None:
        """Have a version, and what it is made of, completed before others."""
        wanted, seen = [name], {name}
        while wanted:
            one = wanted.pop()
            if self._queue.ask(one):
                self._wake()
            entry = (await self._catalogue.store.entries({one.model})).get(one.model)
            parts = _parts(entry, one.version) - seen
            seen |= parts
            wanted.extend(parts)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _parts(entry: Entry | None, number: int) -> set[ModelVersionName]:
    version = entry.versions.get(number) if entry is not None else None
    return set(version.requires) if version is not None and version.parts_waiting else set()
