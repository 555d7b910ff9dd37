"""Sources that are watched: the next version comes when they mean something else."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from services.registry.core.errors import SourceUnavailable
from services.registry.core.imports import Import, ImportState
from services.registry.core.source import Source
from services.registry.core.source_watch import RETRY_US, SourceWatch
from services.registry.sources.origin import Listing
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.registry.test_imports import ended, start
from tests.support.registry import (
    PYTHON_CODE,
    PYTHON_CONFIG,
    Registry,
    refusal,
    registry,
    version_name,
)
from tests.support.sources import MemorySource

on_both = pytest.mark.usefixtures("database")

SOON = 20.0  # seconds


@dataclass
class MovingSource(MemorySource):
    """A source in memory whose model means what `moved` says."""

    moved: str = "1"
    away: bool = False

    async def resolve(self, source: Source) -> Listing:
        if self.away:
            raise SourceUnavailable(source=source, problem="it is away")
        listing = await super().resolve(source)
        return replace(listing, source=replace(listing.source, revision=self.moved))


def content(comment: str) -> Mapping[str, bytes]:
    return {
        "config.pbtxt": PYTHON_CONFIG.encode(),
        "model.py": f"{PYTHON_CODE}# {comment}\n".encode(),
    }


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> MovingSource:
    made = MovingSource({"m": content("first")})
    monkeypatch.setattr("services.registry.assembly.origin_of", lambda *_, **__: made)
    return made


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SOON):
        while not await what():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def versions(known: Registry) -> list[str]:
    request = pb.ListModelVersionsRequest(parent="models/-")
    return [one.name for one in (await known.stub.ListModelVersions(request)).versions]


async def watches(known: Registry) -> list[types.SourceWatch]:
    response = await known.stub.ListSourceWatches(pb.ListSourceWatchesRequest())
    return list(response.source_watches)


@on_both
async def test_a_version_comes_each_time_that_a_source_moves(
    tmp_path: Path, source: MovingSource
) -> None:
    every = {"source_watch_seconds": 0.05}
    async with registry(tmp_path / "data", **every) as known:
        started = await start(known, "s3://memory/m", watch=True)
        assert (await ended(known, started)).version == version_name("m:1")
        (one,) = await watches(known)
        assert (one.model, one.source.revision, one.last_import) == ("models/m", "1", started.name)

        source.models["m"], source.moved = content("second"), "2"
        await until(lambda: _has(known, "m:2"))
        assert (await known.version("m:2")).provenance.source.revision == "2"
        assert (await known.model("m")).default_version == 2

        source.away = True
        await until(lambda: _problem(known, "it is away"))
        source.away = False
        await until(lambda: _problem(known, ""))
        assert await versions(known) == [version_name("m:1"), version_name("m:2")]
    source.moved = "3"
    async with registry(tmp_path / "data", **every) as known:
        await until(lambda: _has(known, "m:3"))
        (one,) = await watches(known)
        assert (one.source.revision, one.started_by) == ("3", "local")
        await known.stub.DeleteSourceWatch(pb.DeleteSourceWatchRequest(name=one.name))
        gone = known.stub.DeleteSourceWatch(pb.DeleteSourceWatchRequest(name=one.name))
        assert (await refusal(gone)).reason == "SOURCE_WATCH_NOT_FOUND"
        assert await watches(known) == []


async def _has(known: Registry, name: str) -> bool:
    return version_name(name) in await versions(known)


async def _problem(known: Registry, text: str) -> bool:
    (one,) = await watches(known)
    return text in one.problem if text else not one.problem


@on_both
async def test_a_deleted_model_is_watched_no_longer(tmp_path: Path, source: MovingSource) -> None:
    async with registry(tmp_path / "data") as known:
        await ended(known, await start(known, "s3://memory/m", watch=True))
        await known.stub.DeleteModel(pb.DeleteModelRequest(name="models/m"))
        assert await watches(known) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"parent": "models/-"}, "name one model"),
        ({"version": 3}, "no version of it"),
        ({"source": "file:///somewhere"}, "do not move"),
    ],
)
async def test_what_cannot_be_watched(
    tmp_path: Path, source: MovingSource, fields: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {
        "parent": "models/m",
        "source": "s3://memory/m",
        **fields,
    }
    async with registry(tmp_path / "data") as known:
        refused = await refusal(
            known.stub.StartImports(pb.StartImportsRequest(watch=True, **given))
        )
        assert (refused.reason, refused.metadata["field"]) == ("INVALID_FIELD", "watch")
        assert said in refused.message
        assert await watches(known) == []


def test_when_an_import_is_due() -> None:
    source = Source("mlflow", "m@champion", "1")
    watch = SourceWatch(id="w", model="m", source=source, last_import="i", pending=True, who="ann")
    last = Import(id="i", model="m", source=source)
    moved = replace(source, revision="2")
    assert watch.wanted(moved, last, 0) is None  # one at a time
    done = last.moved(ImportState.FAILED, 100)
    assert watch.wanted(source, done, 100 + RETRY_US - 1) is None
    again = watch.wanted(source, done, 100 + RETRY_US)
    assert again is not None
    assert (again.model, again.source, again.pending, again.who) == ("m", source, True, "ann")
    assert watch.wanted(source, None, 0) is None
    assert watch.wanted(moved, None, 0) is not None
    cancelled = last.moved(ImportState.CANCELLED, 100)
    assert watch.wanted(source, cancelled, 10 * RETRY_US) is None
