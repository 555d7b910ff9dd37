"""Sources that are looked at again and again, and when that leads to an import."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.registry.core.imports import Import, ImportState
from services.registry.core.source import Source

# How long after its end an import that has failed is tried again.
RETRY_US: Final = 600 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceWatch:
    """A source whose next version is imported whenever it means something else.

    `source` has the revision that was imported last, and `last_import` the ID of that import.
    """

    id: str
    model: str
    source: Source
    last_import: str
    declared_memory: Mapping[str, int] = field(default_factory=dict)
    pending: bool = False
    who: str = ""
    problem: str = ""
    started_us: int = 0

    @property
    def name(self) -> str:
        return f"sourceWatches/{self.id}"

    def wanted(self, found: Source, last: Import | None, now_us: int) -> Import | None:
        """Return the import that is due, without its ID, or None.

        `found` is what the source means at this moment, `last` the last import if it is known.
        """
        if last is not None and not last.has_ended:
            return None
        failed = last is not None and last.state is ImportState.FAILED
        retried = failed and last is not None and now_us - last.ended_us >= RETRY_US
        if found.revision == self.source.revision and not retried:
            return None
        return Import(
            id="",
            model=self.model,
            source=found,
            declared_memory=self.declared_memory,
            pending=self.pending,
            who=self.who,
        )
