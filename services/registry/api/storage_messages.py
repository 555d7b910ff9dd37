"""Conversions between the store's values and protobuf messages."""

import hashlib
from collections.abc import Iterable

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.registry.core.catalogue import Version
from services.registry.core.disk import Holding, Leaving, own_bytes
from services.registry.core.imports import Import, ImportState, Progress
from services.registry.core.source import Source
from services.registry.core.source_watch import SourceWatch
from shoal import names
from shoal.registry.v1 import registry_service_pb2 as service
from shoal.registry.v1 import types_pb2 as types

_IMPORT_STATES = {
    ImportState.IMPORTING: types.IMPORT_STATE_IMPORTING,
    ImportState.VALIDATING: types.IMPORT_STATE_VALIDATING,
    ImportState.REGISTERED: types.IMPORT_STATE_REGISTERED,
    ImportState.FAILED: types.IMPORT_STATE_FAILED,
    ImportState.CANCELLED: types.IMPORT_STATE_CANCELLED,
}


def digest(request: Message) -> str:
    """Return a digest of a request, by which a repeated one is known."""
    content = request.SerializeToString(deterministic=True)
    return hashlib.sha256(request.DESCRIPTOR.full_name.encode() + b"\0" + content).hexdigest()


def timestamp(us: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(us)
    return stamp


def source(known: Source) -> types.Source:
    return types.Source(scheme=known.scheme, locator=known.locator, revision=known.revision)


def provenance(version: Version) -> types.Provenance:
    """Return where a version comes from: its folder, unless somebody has said more."""
    known = version.provenance
    if known is None:
        return types.Provenance(
            source=types.Source(scheme="file", locator=version.source),
            register_time=timestamp(version.created_us),
        )
    return types.Provenance(
        source=source(known.source),
        folder=known.folder,
        digest=f"sha256:{known.digest}" if known.digest else "",
        registered_by=known.who,
        register_time=timestamp(known.at_us or version.created_us),
        about=known.about,
        refetchable=known.is_refetchable,
    )


def source_text(version: Version) -> str:
    """Return where a version comes from, for people."""
    return str(version.provenance) if version.digest else version.source


def source_watch(known: SourceWatch) -> types.SourceWatch:
    return types.SourceWatch(
        name=known.name,
        model=names.model_name(known.model),
        source=source(known.source),
        last_import=f"imports/{known.last_import}",
        problem=known.problem,
        started_by=known.who,
        start_time=timestamp(known.started_us),
    )


def import_(known: Import, progress: Progress) -> types.Import:
    return types.Import(
        name=known.name,
        model=names.model_name(known.model),
        source=source(known.source),
        folder=known.folder,
        state=_IMPORT_STATES[known.state],
        reason=known.reason,
        version=known.version,
        bytes_done=progress.bytes_done,
        files_done=progress.files_done,
        bytes_total=progress.bytes_total,
        files_total=progress.files_total,
        started_by=known.who,
        start_time=timestamp(known.started_us),
        end_time=timestamp(known.ended_us) if known.ended_us else None,
    )


def holdings(known: Iterable[Holding]) -> list[service.DiskHolding]:
    """Return who takes what, the largest first."""
    everything = list(known)
    own = own_bytes(everything)
    return [
        service.DiskHolding(
            digest=f"sha256:{one.digest}",
            versions=one.versions,
            total_bytes=one.size,
            own_bytes=own.get(one.digest, 0),
            present=one.present,
            kept_because=one.kept,
            last_use_time=timestamp(one.used_us) if one.used_us else None,
        )
        for one in sorted(everything, key=lambda one: (-one.size, one.digest))
    ]


def departure(known: Leaving) -> service.Departure:
    return service.Departure(
        digest=known.digest,
        versions=known.versions,
        freed_bytes=known.frees,
        reason=known.reason,
        time=timestamp(known.at_us) if known.at_us else None,
    )
