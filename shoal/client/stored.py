"""What the Registry's store holds and where it comes from, as plain values and from messages."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shoal.client.values import last, moment, version_names, word
from shoal.names import ModelVersionName
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1 import types_pb2 as catalogue


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a version comes from.

    Attributes:
        source: Where its files were fetched from, such as "s3://bucket/model", or the folder on the
            Registry's host.
        revision: The revision of the source that was fetched; "" where it has none.
        folder: The folder in the source that holds the model; "" for the source itself.
        digest: "sha256:" and the digest of its files; "" for a folder that is served in place.
        registered_by: Who registered it; "" if that is not known.
        register_time: When it was registered.
        about: What the source says of it.
        refetchable: Whether its files can be fetched again.
    """

    source: str
    revision: str
    folder: str
    digest: str
    registered_by: str
    register_time: datetime
    about: dict[str, str] = field(default_factory=dict)
    refetchable: bool = False


@dataclass(frozen=True, slots=True)
class Import:
    """A version on its way from a source into the catalogue.

    Attributes:
        id: The ID of the import.
        model: The model's name.
        source: Where the files come from.
        folder: The folder in the source that holds the model; "" for the source itself.
        state: IMPORTING, VALIDATING, REGISTERED, FAILED or CANCELLED.
        reason: Why it has failed.
        version: The version, once it is registered.
        bytes_done: Bytes that have arrived.
        bytes_total: All of them; None while that is not known.
        files_done: Files that have arrived.
        files_total: All of them; None while that is not known.
        started_by: Who started it.
        start_time: When it was started.
        end_time: When it ended; None while it is under way.
    """

    id: str
    model: str
    source: str
    folder: str
    state: str
    reason: str
    version: ModelVersionName | None
    bytes_done: int
    bytes_total: int | None
    files_done: int
    files_total: int | None
    started_by: str
    start_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class SourceWatch:
    """A source whose next version is imported whenever it means something else.

    Attributes:
        id: The ID of the watch.
        model: The model's name.
        source: What is watched, such as "mlflow://name@champion".
        revision: The revision that was imported last.
        last_import: The ID of the last import.
        problem: Why the source could not be looked at the last time; "" if it could.
        started_by: Who started it.
        start_time: When it was started.
    """

    id: str
    model: str
    source: str
    revision: str
    last_import: str
    problem: str
    started_by: str
    start_time: datetime


@dataclass(frozen=True, slots=True)
class Departure:
    """Files that have left the store's disk, or would.

    Attributes:
        versions: The versions that have these files.
        freed_bytes: The bytes that this frees.
        reason: Why.
        time: When they left; None if they have not.
    """

    versions: tuple[ModelVersionName, ...]
    freed_bytes: int
    reason: str
    time: datetime | None


@dataclass(frozen=True, slots=True)
class DiskHolding:
    """The files of some versions in the store.

    Attributes:
        digest: "sha256:" and the digest of the list of files.
        versions: The versions that have these files.
        total_bytes: The bytes of all its files.
        own_bytes: The bytes that nothing else shares.
        present: Whether the files are on disk.
        kept_because: Why they may not leave the disk; "" if they may.
    """

    digest: str
    versions: tuple[ModelVersionName, ...]
    total_bytes: int
    own_bytes: int
    present: bool
    kept_because: str


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What the store takes on disk.

    Attributes:
        used_bytes: The bytes of all its files, with what is being fetched.
        budget_bytes: The most that they may take; None for no limit.
        free_bytes: The bytes that are free on its file system.
        holdings: Who takes what, the largest first.
        departures: What has left the disk lately, the newest first.
    """

    used_bytes: int
    budget_bytes: int | None
    free_bytes: int
    holdings: tuple[DiskHolding, ...]
    departures: tuple[Departure, ...]


def provenance(message: catalogue.Provenance) -> Provenance:
    return Provenance(
        source=source(message.source),
        revision=message.source.revision,
        folder=message.folder,
        digest=message.digest,
        registered_by=message.registered_by,
        register_time=moment(message.register_time),
        about=dict(message.about),
        refetchable=message.refetchable,
    )


def source(message: catalogue.Source) -> str:
    return f"{message.scheme}://{message.locator}"


def import_(message: catalogue.Import) -> Import:
    def known(name: Any) -> Any:
        return getattr(message, name) if message.HasField(name) else None

    return Import(
        id=last(message.name),
        model=last(message.model),
        source=source(message.source),
        folder=message.folder,
        state=word(catalogue.ImportState, message.state),
        reason=message.reason,
        version=version_names([message.version])[0] if message.version else None,
        bytes_done=message.bytes_done,
        bytes_total=known("bytes_total"),
        files_done=message.files_done,
        files_total=known("files_total"),
        started_by=message.started_by,
        start_time=moment(message.start_time),
        end_time=moment(message.end_time) if message.HasField("end_time") else None,
    )


def source_watch(message: catalogue.SourceWatch) -> SourceWatch:
    return SourceWatch(
        id=last(message.name),
        model=last(message.model),
        source=source(message.source),
        revision=message.source.revision,
        last_import=last(message.last_import),
        problem=message.problem,
        started_by=message.started_by,
        start_time=moment(message.start_time),
    )


def departure(message: registry.Departure) -> Departure:
    return Departure(
        version_names(message.versions),
        message.freed_bytes,
        message.reason,
        moment(message.time) if message.HasField("time") else None,
    )


def disk_usage(message: registry.GetDiskUsageResponse) -> DiskUsage:
    return DiskUsage(
        used_bytes=message.used_bytes,
        budget_bytes=message.budget_bytes or None,
        free_bytes=message.free_bytes,
        holdings=tuple(
            DiskHolding(
                one.digest,
                version_names(one.versions),
                one.total_bytes,
                one.own_bytes,
                one.present,
                one.kept_because,
            )
            for one in message.holdings
        ),
        departures=tuple(map(departure, message.departures)),
    )
