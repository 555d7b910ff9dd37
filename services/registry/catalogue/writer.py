"""The one way in which the catalogue changes, and who is told of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.registry.artifacts.staging import Staging
from services.registry.catalogue.change import Change
from services.registry.catalogue.dependents import settle
from services.registry.catalogue.store import Store
from services.registry.catalogue.watch import CatalogLog, Delta
from services.registry.completion import finish


class Catalogue:
    """A change is settled, committed and published as one; others wait meanwhile."""

    def __init__(self, store: Store, staging: Staging, log: CatalogLog) -> None:
        self.store = store
        self.log = log
        self._staging = staging
        self._writing = asyncio.Lock()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Change]:
        """Committed when the block ends well; then its entries are as they were written."""
        async with self._writing, self.store.change() as change:
            yield change
            await finish(self._commit(change))

    async def _commit(self, change: Change) -> None:
        await settle(change)
        await asyncio.to_thread(self._staging.write_configs, list(change.entries()))
        committed = await change.commit()
        if committed.changed:
            self.log.publish(Delta(committed.revision, committed.changed))
