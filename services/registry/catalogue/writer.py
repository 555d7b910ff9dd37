"""The one way in which the catalogue changes, and who is told about it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.tasks import TaskScope
from services.registry.artifacts.staging import Staging
from services.registry.catalogue.change import Change
from services.registry.catalogue.dependents import resolve_dependents
from services.registry.catalogue.store import Store
from services.registry.catalogue.watch import CatalogueLog, Delta


class Catalogue:
    """The catalogue as its writers use it: one change at a time.

    Each change has its dependents resolved, is committed and is published, as one. `tasks` finish a
    commit whose caller goes away.
    """

    def __init__(self, store: Store, staging: Staging, log: CatalogueLog, tasks: TaskScope) -> None:
        self.store = store
        self.log = log
        self._staging = staging
        self._tasks = tasks
        self._writing = asyncio.Lock()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Change]:
        """Give a change, and commit it unless the block raises.

        After that, the change's entries are as they were written.
        """
        async with self._writing, self.store.change() as change:
            yield change
            await self._tasks.complete(self._commit(change))

    async def _commit(self, change: Change) -> None:
        await resolve_dependents(change)
        await asyncio.to_thread(self._staging.write_configs, list(change.entries()))
        committed = await change.commit()
        if committed.changed:
            self.log.publish(Delta(committed.revision, committed.changed))
