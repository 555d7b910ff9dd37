"""`python -m bench.catalogue`: a large catalogue on both databases, against bare SQL.

A database is filled with models of three versions each, and a Registry serves it from a process of
its own. Its answers are compared with the queries that they need, made in the same process as the
questions. Then it is killed during many writes at a time, and what it had acknowledged is counted.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tritonclient.grpc.model_config_pb2 import ModelConfig

from bench import machine
from bench.residency.report import Table, section
from bench.results import record
from services.embedded.ports import pick
from services.registry.catalogue import rows, schema
from services.registry.catalogue.database import open_engine
from services.registry.catalogue.store import Store
from services.registry.core.catalogue import Model, Version, VersionState
from services.registry.core.provenance import Provenance
from services.registry.core.source import Source
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc
from shoal.registry.v1 import types_pb2 as types
from tests.support import postgres
from tests.support.registry import serving

ROOT: Final = Path(__file__).resolve().parents[1]
VERSIONS: Final = 3  # of each model
PAGE: Final = 100
CHANGED: Final = 1000  # models, before a watch goes on
WRITES: Final = 1000  # at a time, when the Registry is killed
_BATCH: Final = 5000  # rows
_OPTIONS: Final = (("grpc.max_receive_message_length", -1),)

Work = Callable[[], Awaitable[object]]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.catalogue", description=__doc__)
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--record", action="store_true", help="add it to bench/RESULTS.md")
    given = parser.parse_args(words)
    before = machine.load_average()
    found = asyncio.run(_both(given.models, given.rounds))
    speeds = Table(
        "medians in ms",
        ("database", "what", "Registry", "bare SQL", "ratio"),
        [row for rows_of, _ in found for row in rows_of],
    )
    kills = Table(
        f"kill -9 during {WRITES} writes at a time",
        ("database", "acknowledged", "lost", "revisions seen twice", "models that no watch told"),
        [row for _, row in found],
    )
    about = {
        "catalogue": f"{given.models} models with {VERSIONS} versions each",
        "machine": f"{machine.describe()}; load average before {before:.1f}",
    }
    text = section(f"{datetime.now(UTC):%Y-%m-%d}: a large catalogue", about, [speeds, kills])
    print(text)
    if given.record:
        record(text)
    return 0


async def _both(models: int, rounds: int) -> list[tuple[list[tuple[str, ...]], tuple[str, ...]]]:
    found = []
    with tempfile.TemporaryDirectory(prefix="shoal-catalogue-") as folder:
        found.append(await _measured("SQLite", f"sqlite:///{folder}/registry.db", models, rounds))
    if postgres.programs() is not None:
        with postgres.server() as server:
            async with postgres.database(server, "bench") as url:
                found.append(await _measured("PostgreSQL", url, models, rounds))
    return found


async def _measured(
    name: str, url: str, models: int, rounds: int
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    store = await Store.open(url)
    await store.close()
    engine, reader = open_engine(url)
    try:
        await _fill(engine, models)
        with tempfile.TemporaryDirectory(prefix="shoal-catalogue-") as folder:
            async with _registry(url, folder) as (stub, _):
                speeds = await _speeds(name, stub, reader, models, rounds)
            return speeds, await _killed(name, url, folder)
    finally:
        await engine.dispose()
        await reader.dispose()


async def _fill(engine: AsyncEngine, models: int) -> None:
    """Write the rows of models whose files have left the disk."""
    config = ModelConfig(name="model", backend="onnxruntime").SerializeToString()
    async with engine.begin() as connection:
        for first in range(0, models, _BATCH):
            numbers = range(first, min(first + _BATCH, models))
            made = [Model(name=_name(number), labels={"team": "a"}) for number in numbers]
            await connection.execute(insert(schema.models), [*map(rows.model_row, made)])
            stored = [
                rows.version_row(_version(model.name, number, config))
                for model in made
                for number in range(1, VERSIONS + 1)
            ]
            await connection.execute(insert(schema.versions), stored)


def _version(model: str, number: int, config: bytes) -> Version:
    digest = hashlib.sha256(f"{model} {number}".encode()).hexdigest()
    source = Source("s3", f"models/{model}", "1")
    return Version(
        model=model,
        number=number,
        verdict=VersionState.APPROVED,
        source="",
        config=config,
        fingerprint="f",
        provenance=Provenance(source=source, digest=digest),
    )


def _name(number: int) -> str:
    return f"model-{number:06}"


@contextlib.asynccontextmanager
async def _registry(url: str, folder: str) -> AsyncIterator[tuple[Any, "subprocess.Popen[bytes]"]]:
    (port,) = pick(1)
    environment = {
        **os.environ,
        "SHOAL_REGISTRY_PORT": str(port),
        "SHOAL_REGISTRY_METRICS_PORT": "none",
        "SHOAL_REGISTRY_DATA_DIR": folder,
        "SHOAL_REGISTRY_DATABASE_URL": url,
    }
    command = [sys.executable, "-m", "services.registry"]
    process = await asyncio.to_thread(
        subprocess.Popen, command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        address = f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            await serving(channel)
            yield pb_grpc.RegistryServiceStub(channel), process
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def _speeds(
    name: str, stub: Any, reader: AsyncEngine, models: int, rounds: int
) -> list[tuple[str, ...]]:
    middle = _name(models // 2)
    token = (await stub.ListModels(pb.ListModelsRequest(page_size=PAGE))).next_page_token
    page = pb.ListModelsRequest(page_size=PAGE, page_token=token)
    one = pb.GetModelRequest(name=f"models/{middle}")
    await stub.CreateModel(pb.CreateModelRequest(model=types.Model(name="models/first")))
    start = await _revision(stub)
    for number in range(min(CHANGED, models)):
        changed = types.Model(name=f"models/{_name(number)}", description="changed")
        request = pb.UpdateModelRequest(model=changed)
        request.update_mask.paths.append("description")
        await stub.UpdateModel(request)
    last = await _revision(stub)

    async def resumed() -> None:
        await _follow(stub, start, last)

    async with reader.connect() as connection:
        bare: dict[str, tuple[Work, Work]] = {
            f"a page of {PAGE}": (
                lambda: stub.ListModels(page),
                lambda: _sql(connection, schema.models.c.name > _name(PAGE), PAGE),
            ),
            "one model": (
                lambda: stub.GetModel(one),
                lambda: _sql(connection, schema.models.c.name == middle, 1),
            ),
            f"a watch that goes on, {CHANGED} models changed": (
                resumed,
                lambda: _sql(connection, schema.models.c.revision > start, CHANGED),
            ),
        }
        found: list[tuple[str, ...]] = []
        for what, pair in bare.items():
            ours, theirs = await _medians(pair, rounds)
            found.append(
                (name, what, f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.1f}"),
            )
    return found


async def _sql(connection: AsyncConnection, condition: Any, limit: int) -> None:
    """Read models and their versions."""
    query = select(schema.models).where(condition).order_by(schema.models.c.name).limit(limit)
    found = [row["name"] for row in (await connection.execute(query)).mappings()]
    versions = select(schema.versions).where(schema.versions.c.model.in_(found))
    assert len((await connection.execute(versions)).all()) == VERSIONS * len(found) > 0
    await connection.rollback()


async def _medians(pair: tuple[Work, Work], rounds: int) -> tuple[float, float]:
    """Return the median milliseconds of two ways, which take turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for work, times in zip(pair, taken, strict=True):
            began = time.perf_counter()
            await work()
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[0]), statistics.median(taken[1])


async def _revision(stub: Any) -> int:
    watch = stub.WatchCatalog(pb.WatchCatalogRequest())
    revision = (await watch.read()).revision
    watch.cancel()
    return int(revision)


async def _follow(stub: Any, start: int, last: int) -> None:
    watch = stub.WatchCatalog(pb.WatchCatalogRequest(start_revision=start))
    async for response in watch:
        assert not response.HasField("snapshot")
        if response.revision >= last:
            break
    watch.cancel()


async def _killed(name: str, url: str, folder: str) -> tuple[str, ...]:
    """Kill a Registry during many writes, and count what it had acknowledged and what is there."""
    acknowledged: set[str] = set()
    seen: list[tuple[Counter[int], set[str], int]] = []
    enough = asyncio.Event()

    async with _registry(url, folder) as (stub, process):
        start = await _revision(stub)

        async def write(number: int) -> None:
            model = types.Model(name=f"models/new-{number:06}")
            with contextlib.suppress(grpc.aio.AioRpcError):
                made = await stub.CreateModel(pb.CreateModelRequest(model=model))
                acknowledged.add(made.model.name)
                if len(acknowledged) >= WRITES // 3:
                    enough.set()

        async def watch() -> None:
            revisions: Counter[int] = Counter()
            models: set[str] = set()
            at = start
            with contextlib.suppress(grpc.aio.AioRpcError):
                request = pb.WatchCatalogRequest(start_revision=start)
                async for response in stub.WatchCatalog(request):
                    if response.HasField("delta"):
                        at = response.revision
                        revisions[at] += 1
                        models |= {entry.model.name for entry in response.delta.entries}
            seen.append((revisions, models, at))

        watches = [asyncio.create_task(watch()) for _ in range(3)]
        writes = [asyncio.create_task(write(number)) for number in range(WRITES)]
        await enough.wait()
        process.kill()
        await asyncio.wait((*watches, *writes))
    async with _registry(url, folder) as (stub, _):
        kept: set[str] = set()
        token = ""
        while True:
            request = pb.ListModelsRequest(page_size=1000, page_token=token)
            response = await stub.ListModels(request)
            kept |= {one.name for one in response.models if one.name.startswith("models/new-")}
            if not (token := response.next_page_token):
                break
        untold = 0
        for _, models, at in seen:
            # What was written after the last that it has seen comes when it goes on.
            watch_again = stub.WatchCatalog(pb.WatchCatalogRequest(start_revision=at))
            first = await watch_again.read()
            watch_again.cancel()
            entries = [*first.snapshot.entries, *first.delta.entries]
            untold += len(kept - models - {entry.model.name for entry in entries})
    twice = sum(count - 1 for revisions, _, _ in seen for count in revisions.values())
    lost = len(acknowledged - kept)
    return name, str(len(acknowledged)), str(lost), str(twice), str(untold)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
