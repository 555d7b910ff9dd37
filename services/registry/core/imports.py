"""Imports: versions on their way from a source into the catalogue."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from services.registry.core.provenance import UPLOAD
from services.registry.core.source import Source
from shoal import names


class ImportState(enum.Enum):
    IMPORTING = "importing"
    VALIDATING = "validating"
    REGISTERED = "registered"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({ImportState.REGISTERED, ImportState.FAILED, ImportState.CANCELLED})

# All legal moves. An import that a restart interrupts begins again with what is on disk.
IMPORT_MOVES: Final[Mapping[ImportState, frozenset[ImportState]]] = {
    ImportState.IMPORTING: frozenset(
        {ImportState.VALIDATING, ImportState.FAILED, ImportState.CANCELLED}
    ),
    ImportState.VALIDATING: frozenset(
        {
            ImportState.IMPORTING,
            ImportState.REGISTERED,
            ImportState.FAILED,
            ImportState.CANCELLED,
        }
    ),
    ImportState.REGISTERED: frozenset(),
    ImportState.FAILED: frozenset(),
    ImportState.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import. `number` is the version that is wanted, 0 for any.

    `folder` is the folder in the source that holds the model, or "". `registered` is the number of
    the version once it is in the catalogue, `bytes` and `files` what has arrived for it.
    """

    id: str
    model: str
    source: Source
    folder: str = ""
    number: int = 0
    declared_memory: Mapping[str, int] = field(default_factory=dict)
    pending: bool = False
    who: str = ""
    state: ImportState = ImportState.IMPORTING
    reason: str = ""
    registered: int = 0
    bytes: int = 0
    files: int = 0
    started_us: int = 0
    ended_us: int = 0

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def is_upload(self) -> bool:
        return self.source.scheme == UPLOAD

    @property
    def name(self) -> str:
        return f"imports/{self.id}"

    @property
    def version(self) -> str:
        """Return the name of the version that it has registered, or ""."""
        return names.version_name(self.model, self.registered) if self.registered else ""

    def moved(self, state: ImportState, now_us: int, reason: str = "") -> "Import":
        """Return the import in another state. Moving there again changes nothing."""
        if state is self.state:
            return self
        assert state in IMPORT_MOVES[self.state], (self, state)
        return replace(self, state=state, reason=reason, ended_us=now_us if state in ENDED else 0)


@dataclass(frozen=True, slots=True)
class Progress:
    """The bytes and files that have arrived, and all of them, None while that is not known."""

    bytes_done: int = 0
    files_done: int = 0
    bytes_total: int | None = None
    files_total: int | None = None
