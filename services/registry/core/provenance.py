"""Where a version comes from, and who registered it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.registry.core.source import Source

UPLOAD: Final = "upload"  # the scheme of files that a caller has sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The origin of a version's files.

    `source` is pinned, and `folder` the folder in it that holds the model, or "". `digest` is that
    of the manifest in the store, or "" for a folder that is served in place. `who` is the subject
    of the caller who registered the version. `about` is what the source says of itself.
    """

    source: Source
    folder: str = ""
    digest: str = ""
    who: str = ""
    at_us: int = 0
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_refetchable(self) -> bool:
        """Return whether the files can be fetched again once they have left the disk."""
        return bool(self.digest) and self.source.scheme != UPLOAD

    def __str__(self) -> str:
        return f"{self.source}, folder {self.folder}" if self.folder else str(self.source)
