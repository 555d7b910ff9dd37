"""The placement table on disk: what is kept of the stream, and what is believed of it later."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.router.control import table_file
from services.router.control.placement_watch import change_of
from services.router.control.table_file import TableFile
from services.router.core.routing.routes import Replica, Target
from services.router.core.routing.table import NONE, Revision, StaleEpoch, Table
from shoal.controller.v1 import placement_pb2 as wire
from shoal.controller.v1 import types_pb2
from tests.support.grpc_servers import listening

Message = wire.WatchPlacementsResponse
Placed = dict[str, list[str]]  # servers by model; every model has version 1 alone


def endpoints(servers: dict[str, str]) -> list[wire.ServerEndpoint]:
    return [
        wire.ServerEndpoint(server=id_, address=address, state=types_pb2.SERVER_STATE_HEALTHY)
        for id_, address in servers.items()
    ]


def models(placed: Placed) -> list[wire.ModelRoute]:
    return [
        wire.ModelRoute(
            model=model,
            default_version=1,
            aliases={"stable": 1},
            versions=[wire.VersionRoute(version=1, servers=on, servable=True, config_digest="d")],
        )
        for model, on in placed.items()
    ]


def snapshot(placed: Placed, servers: dict[str, str], number: int = 1, epoch: int = 7) -> Message:
    """`servers`: addresses by id."""
    return Message(
        revision=wire.Revision(epoch=epoch, number=number),
        snapshot=wire.PlacementSnapshot(servers=endpoints(servers), models=models(placed)),
    )


def delta(
    placed: Placed,
    number: int,
    servers: dict[str, str] | None = None,
    removed_models: tuple[str, ...] = (),
    removed_servers: tuple[str, ...] = (),
) -> Message:
    return Message(
        revision=wire.Revision(epoch=7, number=number),
        delta=wire.PlacementDelta(
            servers=endpoints(servers or {}),
            models=models(placed),
            removed_models=removed_models,
            removed_servers=removed_servers,
        ),
    )


def checkpoint(number: int) -> Message:
    return Message(
        revision=wire.Revision(epoch=7, number=number), checkpoint=wire.PlacementCheckpoint()
    )


def table_of(*messages: Message) -> Table:
    table = Table()
    for message in messages:
        table.apply(change_of(message))
    return table


def replica(server: str, model: str) -> Replica:
    return Replica(server, Target(model, 1))


@asynccontextmanager
async def writing(kept: TableFile) -> AsyncIterator[None]:
    task = asyncio.create_task(kept.write())
    try:
        yield
    finally:
        task.cancel()


async def seen(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  (a disk tells nobody when it changes)
            await asyncio.sleep(0.005)


def content(path: Path) -> Message:
    return Message.FromString(path.read_bytes())


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def written(path: Path, *messages: Message) -> Message:
    """The file's content after a Router has kept `messages` on `path`."""
    kept = TableFile(path)
    for message in messages:
        kept.keep(message)
    async with writing(kept):
        await seen(path.exists)
    return content(path)


# --- keeping --------------------------------------------------------------------------------------

SERVERS = {"t0": "127.0.0.1:1", "t1": "127.0.0.1:2"}


async def test_a_snapshot_is_kept_as_it_came(tmp_path: Path) -> None:
    message = snapshot({"m": ["t0"], "n": []}, SERVERS)
    assert await written(tmp_path / "table", message) == message
    assert files(tmp_path) == ["table"], "nothing else is left"


async def test_a_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    message = snapshot({}, SERVERS)
    assert await written(tmp_path / "a" / "b" / "table", message) == message


async def test_a_later_snapshot_replaces_all(tmp_path: Path) -> None:
    last = snapshot({"n": ["t1"]}, {"t1": "127.0.0.1:9"}, 5)
    assert await written(tmp_path / "table", snapshot({"m": ["t0"]}, SERVERS), last) == last


async def test_deltas_are_merged_into_the_snapshot(tmp_path: Path) -> None:
    found = await written(
        tmp_path / "table",
        snapshot({"m": ["t0"], "n": ["t0"], "o": []}, SERVERS),
        delta({"m": ["t1"], "p": ["t0"]}, 2, {"t0": "127.0.0.1:8", "t2": "127.0.0.1:3"}),
        delta({}, 3, removed_models=("n", "unheard-of"), removed_servers=("t1",)),
        checkpoint(4),
    )
    assert {route.model: list(route.versions[0].servers) for route in found.snapshot.models} == {
        "m": ["t1"],
        "o": [],
        "p": ["t0"],
    }
    assert {server.server: server.address for server in found.snapshot.servers} == {
        "t0": "127.0.0.1:8",
        "t2": "127.0.0.1:3",
    }
    assert (found.revision.epoch, found.revision.number) == (7, 3)


names = st.sampled_from(["t0", "t1", "t2"])
addresses = st.dictionaries(names, st.sampled_from(["127.0.0.1:1", "127.0.0.1:2"]))
placements = st.dictionaries(st.sampled_from("mno"), st.lists(names, unique=True))
tails = st.lists(
    st.tuples(placements, addresses, st.sets(st.sampled_from("mno")), st.sets(names)), max_size=4
)


@settings(max_examples=25)
@given(placements, addresses, tails)
def test_the_file_holds_what_the_table_holds(
    tmp_path_factory: pytest.TempPathFactory, first: Placed, servers: dict[str, str], tail: Any
) -> None:
    messages = [snapshot(first, servers)]
    for number, (placed, found, no_models, no_servers) in enumerate(tail, 2):
        gone = tuple(no_models - placed.keys()), tuple(no_servers - found.keys())
        messages.append(delta(placed, number, found, *gone))
    path = tmp_path_factory.mktemp("kept") / "table"
    kept, direct = table_of(asyncio.run(written(path, *messages))), table_of(*messages)
    assert (kept.routes, kept.addresses) == (direct.routes, direct.addresses)
    assert kept.revision == direct.revision


async def test_a_checkpoint_alone_is_not_worth_a_file(tmp_path: Path) -> None:
    kept = TableFile(tmp_path / "table")
    kept.keep(checkpoint(1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await kept.write()
    assert files(tmp_path) == []


async def test_a_disk_that_takes_nothing_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_file, "WRITE_SECONDS", 0.01)
    blocked = tmp_path / "state"
    blocked.write_text("a file where the folder should be")
    kept = TableFile(blocked / "table")
    kept.keep(snapshot({"m": ["t0"]}, SERVERS))
    with capture_logs() as logged:
        async with writing(kept):
            await seen(lambda: logged)
            blocked.unlink()
            await seen((blocked / "table").exists)
    assert [entry["event"] for entry in logged] == ["cannot write the placement table"], "once"


# --- restoring ------------------------------------------------------------------------------------


class Named(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # it is Any
    """Says that its id is `name`; says nothing until `speak` is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = asyncio.Event()
        self.speak = asyncio.Event()
        self.speak.set()

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        self.asked.set()
        await self.speak.wait()
        return service_pb2.ServerMetadataResponse(name=self.name)


@asynccontextmanager
async def triton_named(servicer: Named) -> AsyncIterator[str]:
    """The address of a server that answers as a Triton would."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    async with listening(server) as address:
        yield address


async def restored(path: Path) -> tuple[Table, bool]:
    table = Table()
    return table, await TableFile(path).restore(table)


async def test_what_was_kept_is_restored(tmp_path: Path) -> None:
    async with triton_named(Named("t0")) as address:
        message = snapshot({"m": ["t0"], "n": []}, {"t0": address}, 4)
        await written(tmp_path / "table", message)
        with capture_logs() as logged:
            table, there = await restored(tmp_path / "table")
    assert there
    assert table == table_of(message)
    assert table.revision == Revision(7, 4)
    assert [entry["servers"] for entry in logged] == [["t0"]]


async def test_only_servers_that_are_still_who_they_were_are_believed(tmp_path: Path) -> None:
    async with triton_named(Named("t0")) as right, triton_named(Named("other")) as wrong:
        servers = {"t0": right, "t1": wrong, "t2": "127.0.0.1:1"}
        await written(tmp_path / "table", snapshot({"m": ["t0", "t1"], "n": ["t1", "t2"]}, servers))
        with capture_logs():
            table, there = await restored(tmp_path / "table")
    assert there
    assert table.holds(replica("t0", "m"))
    assert not table.holds(replica("t1", "m")), "another server has its address now"
    assert not table.holds(replica("t1", "n"))
    assert not table.holds(replica("t2", "n")), "nobody is there"
    assert table.routes["n"].default_version == 1, "the model is known, and cold"


async def test_a_server_that_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_file, "ASK_SECONDS", 0.1)
    silent = Named("t0")
    silent.speak.clear()
    async with triton_named(silent) as address:
        await written(tmp_path / "table", snapshot({"m": ["t0"]}, {"t0": address}))
        with capture_logs():
            table, there = await restored(tmp_path / "table")
    assert there
    assert not table.holds(replica("t0", "m"))


async def test_the_controller_may_come_while_servers_are_asked(tmp_path: Path) -> None:
    slow = Named("t0")
    slow.speak.clear()
    async with triton_named(slow) as address:
        await written(tmp_path / "table", snapshot({"old": ["t0"]}, {"t0": address}))
        table, kept = Table(), TableFile(tmp_path / "table")
        restoring = asyncio.create_task(kept.restore(table))
        await slow.asked.wait()
        fresh = snapshot({"new": ["t1"]}, {"t1": "127.0.0.1:2", "t2": "127.0.0.1:3"}, 1, epoch=8)
        table.apply(change_of(fresh))
        kept.keep(fresh)
        slow.speak.set()
        assert not await restoring
    assert table == table_of(fresh)


async def test_a_controller_of_a_later_epoch_replaces_what_was_restored(tmp_path: Path) -> None:
    async with triton_named(Named("t0")) as address:
        await written(tmp_path / "table", snapshot({"m": ["t0"]}, {"t0": address}, 90))
        with capture_logs():
            table, _ = await restored(tmp_path / "table")
    with pytest.raises(StaleEpoch):
        table.apply(change_of(snapshot({}, {}, 99, epoch=6)))
    gone = table.apply(change_of(snapshot({"m": ["t1"]}, SERVERS, 1, epoch=8)))
    assert gone == {replica("t0", "m")}


async def test_without_a_file_there_is_nothing_to_restore(tmp_path: Path) -> None:
    with capture_logs() as logged:
        table, there = await restored(tmp_path / "table")
    assert not there
    assert table.revision == NONE
    assert logged == []


GOOD = snapshot({"m": ["t0"]}, {}).SerializeToString()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(GOOD[:-1], id="cut in its last field"),
        pytest.param(GOOD[: len(GOOD) // 2], id="cut in half"),
        pytest.param(snapshot({}, {}).revision.SerializeToString(), id="something else"),
        pytest.param(checkpoint(3).SerializeToString(), id="no snapshot"),
        pytest.param(b"\xff" * 100, id="rubbish"),
        pytest.param(b"not protobuf at all\n" * 10, id="text"),
        pytest.param(bytes(4096), id="zeroes, as after a power cut"),
    ],
)
async def test_a_damaged_file_is_not_used_and_not_fatal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table").write_bytes(content)
    with capture_logs() as logged:
        table, there = await restored(tmp_path / "table")
    assert not there
    assert table == Table()
    assert [entry["event"] for entry in logged] == ["cannot use the placement table on disk"]


async def test_a_file_that_cannot_be_read_is_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    with capture_logs() as logged:
        table, there = await restored(tmp_path / "table")
    assert (there, table, len(logged)) == (False, Table(), 1)
