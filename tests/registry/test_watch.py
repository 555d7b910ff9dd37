"""Followers of the catalogue miss nothing."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import NotReady
from services.registry.assembly import running
from services.registry.catalogue.store import Snapshot
from services.registry.catalogue.watch import CatalogueLog, Delta
from services.registry.core.catalogue import Entry, Model
from services.registry.settings import RegistrySettings
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc
from shoal.registry.v1 import types_pb2 as types
from tests.support.registry import Registry, python_model, refusal, registry

pytestmark = pytest.mark.usefixtures("database")

Picture = dict[str, Any]


def apply(picture: Picture, response: pb.WatchCatalogResponse) -> Picture:
    """What a follower knows after the response: entries by the model's resource name."""
    if response.WhichOneof("event") == "snapshot":
        return {entry.model.name: entry for entry in response.snapshot.entries}
    updated = picture | {entry.model.name: entry for entry in response.delta.entries}
    for name in response.delta.removed_models:
        updated.pop(name, None)
    return updated


async def follow(known: Registry, start: int = 0) -> AsyncGenerator[pb.WatchCatalogResponse, None]:
    watch = known.stub.WatchCatalog(pb.WatchCatalogRequest(start_revision=start))
    try:
        async for response in watch:
            yield response
    finally:
        watch.cancel()


async def create(known: Registry, name: str, **fields: Any) -> None:
    model = types.Model(name=f"models/{name}", **fields)
    await known.stub.CreateModel(pb.CreateModelRequest(model=model))


async def truth(known: Registry) -> Picture:
    async with aclosing(follow(known)) as responses:
        return apply({}, await anext(responses))


async def test_a_snapshot_then_what_changes(tmp_path: Path) -> None:
    python_model(tmp_path / "repo", "m")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        async with aclosing(follow(known)) as responses:
            first = await anext(responses)
            (entry,) = first.snapshot.entries
            assert entry.model == await known.model("m")
            assert list(entry.versions) == [await known.version("m:1")]
            await create(known, "x")
            second = await anext(responses)
            assert second.revision == first.revision + 1
            assert [one.model.name for one in second.delta.entries] == ["models/x"]
            await known.stub.DeleteModel(pb.DeleteModelRequest(name="models/x"))
            assert list((await anext(responses)).delta.removed_models) == ["models/x"]
        async with aclosing(follow(known, first.revision)) as responses:
            resumed = await anext(responses)
            assert resumed.revision == first.revision + 2
            assert list(resumed.delta.removed_models) == ["models/x"]


async def test_a_revision_that_is_not_remembered_gets_a_snapshot(tmp_path: Path) -> None:
    async with registry(tmp_path) as known:
        await create(known, "a")
        await create(known, "b")
    async with registry(tmp_path) as known:
        for start, event in (
            (1, "snapshot"),
            (3, "snapshot"),
            (10**9, "snapshot"),
            (-1, "snapshot"),
        ):
            async with aclosing(follow(known, start)) as responses:
                response = await anext(responses)
                assert (response.WhichOneof("event"), response.revision) == (event, 2)
        async with aclosing(follow(known, 2)) as responses:
            await create(known, "c")
            assert (await anext(responses)).WhichOneof("event") == "delta"


async def test_a_silent_stream_is_known_to_live(tmp_path: Path) -> None:
    async with (
        registry(tmp_path, watch_checkpoint_seconds=0.05) as known,
        aclosing(follow(known)) as responses,
    ):
        events = [(await anext(responses)).WhichOneof("event") for _ in range(3)]
        assert events == ["snapshot", "checkpoint", "checkpoint"]


async def test_a_stopping_registry_ends_its_streams(tmp_path: Path) -> None:
    told = RegistrySettings(port=0, metrics_port=None, data_dir=tmp_path, stop_grace_seconds=30)
    async with running(told) as ports:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}")
        watch = pb_grpc.RegistryServiceStub(channel).WatchCatalog(pb.WatchCatalogRequest())
        await watch.read()
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 5
    refused = await refusal(watch.read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
    await channel.close()


async def test_followers_agree_with_many_writers(tmp_path: Path) -> None:
    """Writers and followers at once; every follower ends with the truth, in order."""
    python_model(tmp_path / "repo", "m", (1, 2, 3))
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        writers, rounds = 6, 12

        async def write(writer: int) -> None:
            for step in range(rounds):
                name = f"w{writer}-{step % 3}"
                if step >= 3:
                    await known.stub.DeleteModel(pb.DeleteModelRequest(name=f"models/{name}"))
                await create(known, name, description=str(step))
                verb = "Reject" if step % 2 else "Approve"
                request = getattr(pb, f"{verb}ModelVersionRequest")(
                    name=f"models/m/versions/{writer % 3 + 1}"
                )
                await getattr(known.stub, f"{verb}ModelVersion")(request)

        async def read(delay: int) -> tuple[Picture, int]:
            for _ in range(delay):
                await truth(known)
            picture: Picture = {}
            seen = 0
            async with aclosing(follow(known)) as responses:
                async for response in responses:
                    assert response.revision > seen or response.WhichOneof("event") == "checkpoint"
                    seen = response.revision
                    picture = apply(picture, response)
                    if "models/last" in picture:
                        return picture, seen
            raise AssertionError("the stream ended")

        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(read(delay)) for delay in range(0, 10, 2)]
            writing = [tasks.create_task(write(writer)) for writer in range(writers)]
            await asyncio.wait(writing)
            await create(known, "last")
        expected, revision = await truth(known), await known.revision()
        for reader in readers:
            picture, seen = reader.result()
            assert seen == revision
            assert picture == expected


def entry(name: str, revision: int) -> Entry:
    return Entry(Model(name=name, revision=revision))


changes = st.dictionaries(st.sampled_from("abcd"), st.booleans(), min_size=1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), changes),
        st.tuples(st.just("foreign write"), st.sampled_from("abcd")),
        st.tuples(st.just("read"), st.integers(0, 2)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(steps, st.integers(1, 6))
async def test_any_interleaving_leaves_no_gap(plan: list[tuple[str, Any]], memory: int) -> None:
    """Three followers of different pace, a log that forgets, and another process that writes."""
    log, truth, revision = CatalogueLog(0, max_entries=memory), dict[str, Entry](), 0

    async def snapshot() -> Snapshot:
        return Snapshot(revision, dict(truth))

    followers = [log.follow(0, snapshot, idle_seconds=0) for _ in range(3)]
    pictures: list[dict[str, Entry]] = [{}, {}, {}]
    at = [0, 0, 0]

    async def read(index: int) -> None:
        item = await anext(followers[index])
        assert item.revision >= at[index]
        at[index] = item.revision
        if isinstance(item, Snapshot):
            pictures[index] = dict(item.entries)
        else:
            pictures[index] |= {name: one for name, one in item.changed.items() if one}
            for name, one in item.changed.items():
                if one is None:
                    pictures[index].pop(name, None)

    def write(changes: dict[str, bool]) -> Delta:
        nonlocal revision
        revision += 1
        changed = {
            name: entry(name, revision) if there else None for name, there in changes.items()
        }
        for name, one in changed.items():
            truth.pop(name, None)
            if one:
                truth[name] = one
        return Delta(revision, changed)

    for action, what in plan:
        if action == "write":
            log.publish(write(what))
        elif action == "foreign write":
            write({what: True})
        else:
            await read(what)
    log.publish(write({"a": True}))
    for index in range(3):
        while at[index] < revision:
            await read(index)
        assert pictures[index] == truth
    for follower in followers:
        await follower.aclose()


async def test_memory_is_bounded_whatever_followers_do() -> None:
    log = CatalogueLog(0, max_entries=10)
    for revision in range(1, 1000):
        log.publish(Delta(revision, {"a": entry("a", revision)}))
    assert not log.remembers(980)
    assert log.remembers(990)
    log.publish(Delta(1000, {str(n): entry(str(n), 1000) for n in range(11)}))
    assert not log.remembers(999)
    assert log.remembers(1000)


async def test_a_slow_follower_gets_one_delta_for_many() -> None:
    async def never() -> Snapshot:
        raise AssertionError("no snapshot is needed")

    log = CatalogueLog(5)
    log.publish(Delta(6, {"a": entry("a", 6), "b": entry("b", 6)}))
    log.publish(Delta(7, {"b": None}))
    log.publish(Delta(8, {"a": entry("a", 8)}))
    async with aclosing(log.follow(5, never, 10)) as responses:
        assert await anext(responses) == Delta(8, {"a": entry("a", 8), "b": None})
        log.close()
        with pytest.raises(NotReady):
            await anext(responses)
