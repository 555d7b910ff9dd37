"""What arrives from a source is looked at before it is registered: its format, and its code."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.registry.artifacts.scan import open_registered
from services.registry.core.errors import InvalidArtifact
from services.registry.core.source import Source
from services.registry.formats.apart import inspect_apart
from services.registry.formats.ensembles import is_ensemble
from services.registry.formats.refusal import Unservable


@dataclass(frozen=True, slots=True)
class Inspections:
    """Looks at artifacts. Code of the schemes in `code_sources` may run; `server_versions` are
    those of what the servers have, by name."""

    code_sources: Collection[str]
    server_versions: Mapping[str, str]

    async def look(self, folder: Path, model: str, number: int, source: Source) -> dict[str, str]:
        """Return what is found out about version `number` (0: any) in a folder, for its provenance.

        Raises InvalidArtifact for what is broken or not allowed, or what no server opens.
        """
        opened = await asyncio.to_thread(
            open_registered, folder, model, number, lambda path: (path,)
        )
        if isinstance(opened.config, Unservable) or is_ensemble(opened.config):
            return {}  # which registering says
        try:
            found = await inspect_apart(
                opened.folder(number or opened.newest),
                scheme=source.scheme,
                code_sources=self.code_sources,
                server_versions=self.server_versions,
                given=opened.config,
            )
        except Unservable as error:
            raise InvalidArtifact(path=source, problem=str(error)) from None
        if not found.format:
            return {}
        if found.must_convert:
            raise InvalidArtifact(
                path=source,
                problem=f"it is a model of the format {found.format}, which no server opens: "
                "export it to ONNX, and register that",
            )
        notes = {"notes": "; ".join(found.notes)} if found.notes else {}
        return {"format": found.format, **notes}
