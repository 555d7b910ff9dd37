"""What the Router makes of the lines that the proxy writes."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.router.core.routing.routes import Replica, Target
from services.router.lane.journal import Journal
from tests.support.waiting import until

REPLICA = Replica("t0", Target("m", 1))
OTHER = Replica("t1", Target("a+b@c", 12))
ADDRESSES = {"127.0.0.1:1": "t0", "127.0.0.1:2": "t1"}


class Counts:
    """What the journal told of."""

    def __init__(self) -> None:
        self.begun: list[Replica] = []
        self.ended: list[tuple[Replica, float | None, bool]] = []

    def end(self, replica: Replica, seconds: float | None, failed: bool) -> None:
        self.ended.append((replica, seconds, failed))


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
async def journal(tmp_path: Path, counts: Counts) -> AsyncIterator[Journal]:
    made = Journal(tmp_path / "journal", counts.begun.append, counts.end)
    made.name_servers(ADDRESSES)
    made.open()
    yield made
    made.close()


def began(target: str = "m:1", address: str = "127.0.0.1:1") -> bytes:
    return f"UpstreamPoolReady {target} {address} - 0 - 12".encode()


def ended(
    status: str = "0",
    http: str = "200",
    micros: str = "1500",
    sent: str = "12",
    target: str = "m:1",
    address: str = "127.0.0.1:1",
) -> bytes:
    return f"UpstreamEnd {target} {address} {status} {http} {micros} {sent}".encode()


async def test_a_request_is_counted_once(journal: Journal, counts: Counts) -> None:
    journal.take(began())
    assert (counts.begun, counts.ended) == ([REPLICA], [])
    journal.take(ended())
    assert counts.ended == [(REPLICA, 0.0015, False)]


@pytest.mark.parametrize(
    ("line", "seconds", "failed"),
    [
        (ended("3"), 0.0015, True),
        (ended("13", "200"), 0.0015, True),
        (ended("5"), None, True),  # the Router answers it, and counts it
        (ended("14"), None, True),
        (ended("-", "0", "-"), None, True),  # broken off
        (ended("-", "200"), 0.0015, False),  # HTTP has no other status
        (ended("-", "400"), 0.0015, True),
        (ended("0", "200", "-"), None, False),
    ],
)
async def test_how_a_request_ended(
    journal: Journal, counts: Counts, line: bytes, seconds: float | None, failed: bool
) -> None:
    journal.take(began())
    journal.take(line)
    assert counts.ended == [(REPLICA, seconds, failed)]


async def test_what_never_reached_a_server_ends_nothing(journal: Journal, counts: Counts) -> None:
    journal.take(began())
    journal.take(ended("14", "503", "-", sent="-"))
    assert counts.ended == []
    await asyncio.sleep(0)
    journal.take(ended())
    assert len(counts.ended) == 1


async def test_an_end_without_a_beginning_is_another_routers(
    journal: Journal, counts: Counts
) -> None:
    journal.take(ended())
    assert counts.ended == []


@pytest.mark.parametrize(
    "line",
    [
        began("router", "127.0.0.1:9"),
        began("m:1", "127.0.0.1:9"),
        began("m", "127.0.0.1:1"),
        began("m:one", "127.0.0.1:1"),
        began(":1", "127.0.0.1:1"),
        b"",
        b"UpstreamPoolReady",
        b"UpstreamPoolReady m:1",
        b"reamPoolReady m:1 127.0.0.1:1 - 0 - 12",
        b"\xff\xfe",
    ],
)
async def test_other_lines_count_for_nothing(journal: Journal, counts: Counts, line: bytes) -> None:
    journal.take(line)
    assert (counts.begun, counts.ended) == ([], [])


async def test_names_of_every_kind(journal: Journal, counts: Counts) -> None:
    journal.take(began("a+b@c:12", "127.0.0.1:2"))
    assert counts.begun == [OTHER]


async def test_a_server_at_an_address_that_was_anothers(journal: Journal, counts: Counts) -> None:
    journal.take(began())
    journal.name_servers({"127.0.0.1:1": "t1"})
    journal.take(began())
    assert counts.begun == [REPLICA, Replica("t1", REPLICA.target)]


async def test_nothing_is_under_way_once_the_proxy_is_gone(
    journal: Journal, counts: Counts
) -> None:
    for _ in range(3):
        journal.take(began())
    journal.take(began("a+b@c:12", "127.0.0.1:2"))
    idle = asyncio.ensure_future(journal.until_idle())
    await asyncio.sleep(0)
    journal.forget()
    assert sorted(counts.ended) == sorted([(REPLICA, None, True)] * 3 + [(OTHER, None, True)])
    await asyncio.wait_for(idle, 1)
    journal.take(ended())
    assert len(counts.ended) == 4


async def test_lines_come_through_the_pipe_in_any_pieces(
    journal: Journal, counts: Counts, tmp_path: Path
) -> None:
    lines = b"\n".join([began(), ended(), began(), b"PROBE /run-7", ended(), b""])
    read = asyncio.ensure_future(journal.read_until("run-7"))
    writer = os.open(tmp_path / "journal", os.O_WRONLY)
    try:
        for at in range(0, len(lines), 7):
            os.write(writer, lines[at : at + 7])
            await asyncio.sleep(0)
        await asyncio.wait_for(read, 1)
        await until(lambda: len(counts.ended) == 2)
    finally:
        os.close(writer)
    assert len(counts.begun) == 2


async def test_a_probe_is_known_by_its_name(journal: Journal) -> None:
    journal.take(b"PROBE /run-1")
    read = asyncio.ensure_future(journal.read_until("run-2"))
    journal.take(b"PROBE /run-1")
    await asyncio.sleep(0)
    assert not read.done()
    journal.take(b"PROBE /run-2")
    await asyncio.wait_for(read, 1)


async def test_a_pipe_that_is_there_is_kept_and_a_file_is_not(
    tmp_path: Path, counts: Counts
) -> None:
    path = tmp_path / "there"
    path.write_text("a file")
    first = Journal(path, counts.begun.append, counts.end)
    first.name_servers(ADDRESSES)
    first.open()
    writer = os.open(path, os.O_WRONLY)  # as a proxy that outlives the Router has it
    first.close()
    second = Journal(path, counts.begun.append, counts.end)
    second.name_servers(ADDRESSES)
    second.open()
    try:
        os.write(writer, began() + b"\n")
        await until(lambda: counts.begun == [REPLICA])
    finally:
        os.close(writer)
        second.close()
