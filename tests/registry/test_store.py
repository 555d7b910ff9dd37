"""One contract for every database: the catalogue, footprints and the lease."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from sqlalchemy import insert

from services.common.errors import InvalidField, ModelNotFound, NotReady
from services.common.paging import START, Page
from services.registry.catalogue import migrate, rows
from services.registry.catalogue.change import REMEMBERED_US, Change
from services.registry.catalogue.database import UnknownDatabase, open_engine
from services.registry.catalogue.schema import metadata, models, versions
from services.registry.catalogue.store import Store
from services.registry.core.catalogue import (
    Arm,
    Entry,
    Model,
    Part,
    RetryPolicy,
    Target,
    TrafficPolicy,
    Version,
    VersionState,
)
from services.registry.core.errors import LeaseHeld
from services.registry.core.filters import Order, parse_filter
from services.registry.core.footprint import Footprint, LoadFailure
from services.registry.core.residency import Residency
from shoal.names import ModelVersionName
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.support import postgres
from tests.support.registry import python_model, refusal, registry, version_name

SECOND = 1_000_000


class Clock:
    """Microseconds, moved by hand."""

    now_us = 1000 * SECOND

    def __call__(self) -> int:
        return self.now_us


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(database: str, clock: Clock) -> AsyncIterator[Store]:
    store = await Store.open(database, clock)
    yield store
    await store.close()


def version(model: str, number: int, **fields: Any) -> Version:
    return Version(
        **{
            "model": model,
            "number": number,
            "verdict": VersionState.APPROVED,
            "source": "/söurce",
            "config": b"\0\xff",
            "fingerprint": "f",
            **fields,
        }
    )


def full_entry(name: str = "m") -> Entry:
    """With something in every field."""
    one = version(
        name,
        2**62,
        verdict=VersionState.PENDING,
        probe=b"\xff\0",
        config_digest="d",
        auxiliary_digest="a",
        artifact_bytes=2**40,
        ensemble=True,
        parts=(Part("p", 0, 3), Part("q", 2, 2)),
        declared_memory={"ram": 2**40},
        pinned=True,
        artifact_problem="no",
        parts_problem="nö",
    )
    model = Model(
        name=name,
        description="ä",
        labels={"k": "v"},
        retry_policy=RetryPolicy.NEVER,
        residency=Residency(
            min_copies=0,
            max_copies=3,
            idle_ttl_us=0,
            preload=False,
            priority=-1,
            required_labels={"gpu": "a100"},
        ),
        aliases={"live": 1},
        policy=TrafficPolicy((Arm(Target("q", alias="x"), 3), Arm(Target(name, version=1), 0))),
    )
    return Entry(model, {1: version(name, 1), one.number: one})


async def put(store: Store, *entries: Entry) -> int:
    async with store.change() as change:
        await change.load([entry.name for entry in entries])
        for entry in entries:
            change.put(entry)
        return (await change.commit()).revision


async def test_what_is_written_is_read(store: Store, clock: Clock) -> None:
    entry = full_entry()
    assert await put(store, entry) == 1
    read = await store.entry("m")
    assert read.model.created_us == read.model.updated_us == clock.now_us
    assert entry.model.policy is not None
    policy = replace(entry.model.policy, revision=1)
    expected = replace(
        entry.model, policy=policy, created_us=clock.now_us, updated_us=clock.now_us, revision=1
    )
    assert read.model == expected
    assert read.versions == {
        number: replace(one, created_us=clock.now_us, revision=1)
        for number, one in entry.versions.items()
    }
    assert await store.snapshot() == (1, {"m": read})


async def test_a_change_that_changes_nothing_has_no_revision(store: Store) -> None:
    await put(store, full_entry())
    entry = await store.entry("m")
    assert await put(store, entry) == 1


async def test_only_what_changed_gets_the_new_revision(store: Store, clock: Clock) -> None:
    await put(store, full_entry(), full_entry("n"))
    before = await store.entry("m")
    clock.now_us += 5
    await put(store, before.with_version(replace(before.version(1), pinned=True)))
    after = await store.entry("m")
    assert after.version(1).revision == 2
    assert after.version(2**62) == before.version(2**62)
    assert after.model == before.model
    assert (await store.entry("n")).version(1).revision == 1


async def test_versions_and_models_go(store: Store) -> None:
    await put(store, full_entry(), full_entry("n"))
    entry = await store.entry("m")
    await put(store, replace(entry, versions={1: entry.version(1)}))
    assert list((await store.entry("m")).versions) == [1]
    async with store.change() as change:
        await change.entry("m")
        change.remove("m")
        committed = await change.commit()
    assert (committed.revision, dict(committed.changed)) == (3, {"m": None})
    with pytest.raises(ModelNotFound):
        await store.entry("m")
    assert list((await store.snapshot()).entries) == ["n"]


async def test_what_is_not_committed_was_never_there(store: Store) -> None:
    async with store.change() as change:
        await change.find("m")
        change.put(full_entry())
    assert await store.snapshot() == (0, {})
    assert await put(store, full_entry()) == 1


async def test_users_are_found_by_their_parts_and_their_policies(store: Store) -> None:
    policy = TrafficPolicy((Arm(Target("part"), 1),))
    await put(
        store,
        Entry(Model(name="part"), {1: version("part", 1)}),
        Entry(Model(name="e"), {1: version("e", 1, parts=(Part("part", 0, 0),))}),
        Entry(Model(name="p", policy=policy)),
        Entry(Model(name="other"), {1: version("other", 1)}),
    )
    async with store.change() as change:
        assert [user.name for user in await change.users({"part"})] == ["e", "p"]
        change.put(Entry(Model(name="p")))
        await change.find("new")
        change.put(Entry(Model(name="new"), {1: version("new", 1, parts=(Part("part", 1, 1),))}))
        users = await change.users({"part"})
        assert {"e", "new"} <= {user.name for user in users}
        await change.commit()
    async with store.change() as change:
        assert [user.name for user in await change.users({"part"})] == ["e", "new"]


async def test_revisions_have_no_gaps_however_many_write(store: Store) -> None:
    async def write(number: int) -> int:
        async with store.change() as change:
            await change.find(f"m{number}")
            change.put(Entry(Model(name=f"m{number}")))
            return (await change.commit()).revision

    revisions = await asyncio.gather(*(write(number) for number in range(20)))
    assert sorted(revisions) == list(range(1, 21))
    assert await store.revision() == 20


async def test_a_reader_sees_one_moment(store: Store) -> None:
    """Two models that always change together are never seen apart."""

    async def write(change: Change, number: int) -> None:
        for name in ("a", "z"):
            await change.find(name)
            change.put(Entry(Model(name=name, description=str(number))))
        await change.commit()

    async def writer() -> None:
        for number in range(30):
            async with store.change() as change:
                await write(change, number)

    writing = asyncio.ensure_future(writer())
    seen = 0
    while not writing.done():
        entries = (await store.snapshot()).entries
        assert len({entry.model.description for entry in entries.values()}) <= 1
        seen += bool(entries)
    await writing
    assert seen


async def test_pages_follow_keys(store: Store) -> None:
    await put(store, *(full_entry(name) for name in ("b", "a", "c")))
    by_name = Order("name")
    models, more = await store.lists.models(Page(2, START), by_name, None)
    assert ([entry.name for entry in models], more) == (["a", "b"], ("b", 0))
    rest, more = await store.lists.models(Page(2, ("a", 0)), by_name, None)
    assert ([entry.name for entry in rest], more) == (["b", "c"], None)
    found, _ = await store.lists.versions(None, Page(9, ("a", 1)), by_name, None)
    assert [(one.model, one.number) for one in found][:2] == [("a", 2**62), ("b", 1)]
    versions, _ = await store.lists.versions("b", Page(9, START), by_name, None)
    assert len(versions) == 2
    with pytest.raises(ModelNotFound):
        await store.lists.versions("nix", Page(9, START), by_name, None)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("field", ["name", "create_time", "size"])
async def test_every_order_has_its_pages(store: Store, field: str, descending: bool) -> None:
    await put(
        store,
        *(
            Entry(
                Model(name=name),
                {
                    number: version(name, number, artifact_bytes=(number * 7) % 3)
                    for number in (1, 2, 3)
                },
            )
            for name in ("b", "a", "c")
        ),
    )
    order = Order(field, descending)
    everything, more = await store.lists.versions(None, Page(99, START), order, None)
    assert (len(everything), more) == (9, None)
    keys = [
        (one.artifact_bytes if field == "size" else 0, one.model, one.number) for one in everything
    ]
    assert keys == sorted(keys, reverse=descending)
    paged: list[Version] = []
    after: tuple[str, int] | None = START
    while after is not None:
        found, after = await store.lists.versions(None, Page(2, after), order, None)
        paged += found
    assert paged == everything
    models: list[Entry] = []
    after = START
    condition = parse_filter("name = a OR name = c", ("name",))
    while after is not None:
        some, after = await store.lists.models(
            Page(1, after), Order("create_time", descending), condition
        )
        models += some
    assert [entry.name for entry in models] == (["c", "a"] if descending else ["a", "c"])


async def test_requests_are_remembered_for_a_day(store: Store, clock: Clock) -> None:
    async with store.change() as change:
        await change.remember("id", "digest", "m")
        await change.remember("", "digest", "nobody")
        await change.commit()
    async with store.change() as change:
        assert await change.remembered("id", "digest") == "m"
        assert await change.remembered("", "digest") is None
        assert await change.remembered("other", "digest") is None
        with pytest.raises(InvalidField):
            await change.remembered("id", "another digest")
    clock.now_us += REMEMBERED_US
    async with store.change() as change:
        assert await change.remembered("id", "another digest") is None
        await change.remember("id", "another digest", "n")
        await change.commit()


async def test_footprints_belong_to_versions_and_are_no_revision(store: Store) -> None:
    await put(store, full_entry())
    name = ModelVersionName("m", 1)
    await store.report_footprints(
        [
            Footprint(name, "d", {"ram": 5}, 7),
            Footprint(ModelVersionName("nix", 1), "d", {"ram": 5}, 7),
            Footprint(name, "d", {"ram": 3, "gpu:0": 1}, 9),
        ]
    )
    expected = Footprint(name, "d", {"gpu:0": 1, "ram": 5}, 9)
    assert await store.list_footprints(Page(9, START)) == [expected]
    await store.report_footprints([Footprint(name, "d", uses=2.5, used_us=200)])
    await store.report_footprints([Footprint(name, "d", uses=9.0, used_us=100)])
    expected = replace(expected, uses=2.5, used_us=200)
    assert await store.list_footprints(Page(9, START)) == [expected], "the newest uses are kept"
    await store.report_footprints([Footprint(name, "d", {"ram": 4}, 9)])
    assert await store.list_footprints(Page(9, START)) == [expected], "beside what it takes"
    assert await store.revision() == 1
    entry = await store.entry("m")
    await put(store, entry.with_version(replace(entry.version(1), pinned=True)))
    assert await store.list_footprints(Page(9, START)) == [expected]
    await put(store, entry.with_version(replace(entry.version(1), fingerprint="other")))
    assert await store.list_footprints(Page(9, START)) == []


async def test_the_failure_of_a_load_is_kept_until_it_has_loaded_or_its_files_change(
    store: Store,
) -> None:
    async def kept() -> LoadFailure | None:
        (footprint,) = await store.list_footprints(Page(9, START))
        return footprint.failure

    await put(store, full_entry())
    name = ModelVersionName("m", 1)
    failure = LoadFailure("t0", "no weights", 2, 5_000_000, set_aside=False)
    await store.report_footprints([Footprint(name, "d", failure=failure)])
    assert await kept() == failure
    await store.report_footprints([Footprint(name, "d", {"ram": 5}, 7)])
    assert await kept() == failure, "a report that says nothing of it"
    await store.report_footprints([Footprint(name, "d", failure=LoadFailure())])
    assert await kept() is None
    await store.report_footprints([Footprint(name, "d", failure=failure)])
    await store.report_footprints([Footprint(name, "other", {"ram": 5}, 7)])
    assert await kept() is None, "it was of another config"
    await store.report_footprints([Footprint(name, "other", failure=failure)])
    entry = await store.entry("m")
    await put(store, entry.with_version(replace(entry.version(1), fingerprint="other")))
    assert await store.list_footprints(Page(9, START)) == []


async def test_the_lease_outlives_the_process(store: Store, database: str, clock: Clock) -> None:
    assert (await store.hold_lease("a", "1", 10 * SECOND)).epoch == 1
    other = await Store.open(database, clock)
    with pytest.raises(LeaseHeld):
        await other.hold_lease("b", "1", 10 * SECOND)
    assert (await other.hold_lease("a", "1", 10 * SECOND)).epoch == 1
    clock.now_us += 10 * SECOND
    assert (await other.hold_lease("b", "1", 10 * SECOND)).epoch == 2
    with pytest.raises(LeaseHeld):
        await store.hold_lease("a", "1", 10 * SECOND)
    await other.close()


async def test_a_successor_hears_of_the_routers_of_its_predecessor(
    store: Store, clock: Clock
) -> None:
    assert (await store.hold_lease("a", "1", 10 * SECOND)).followers == ()
    named = await store.hold_lease("a", "1", 10 * SECOND, ("r1", "r2"))
    assert named.followers == ("r1", "r2")
    assert (await store.hold_lease("a", "2", 10 * SECOND)).followers == ("r1", "r2")
    clock.now_us += 10 * SECOND
    assert (await store.hold_lease("a", "3", 10 * SECOND)).followers is None
    assert (await store.hold_lease("a", "4", 10 * SECOND)).followers is None


async def test_one_of_many_gets_the_lease(store: Store) -> None:
    async def ask(holder: str) -> int | LeaseHeld:
        try:
            return (await store.hold_lease(holder, "1", SECOND)).epoch
        except LeaseHeld as error:
            return error

    answers = await asyncio.gather(*(ask(f"holder {number}") for number in range(10)))
    assert [answer for answer in answers if isinstance(answer, int)] == [1]


async def test_migrations_make_the_tables_that_the_code_knows(store: Store, database: str) -> None:
    again = await Store.open(database)
    await again.close()
    engine, _ = open_engine(database)
    async with engine.connect() as connection:
        difference = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)
        )
    await engine.dispose()
    assert difference == []


def test_the_newest_revision_is_told_by_the_names_of_files() -> None:
    scripts = ScriptDirectory(str(Path(migrate.__file__).parents[1] / "migrations"))
    assert migrate.newest() == scripts.get_current_head()


def test_a_database_that_is_up_to_date_is_opened_without_alembic(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from services.registry.catalogue.store import Store\n"
        "async def start(): await (await Store.open(sys.argv[1])).close()\n"
        "asyncio.run(start())\n"
        "print('alembic' in sys.modules)"
    )
    url = f"sqlite:///{tmp_path}/registry.db"
    told = [
        subprocess.run(
            [sys.executable, "-c", code, url], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert told == ["True\n", "False\n"]


async def test_a_name_may_be_as_long_as_a_file_name(store: Store) -> None:
    name = "x" * 255
    async with store.change() as change:
        await change.load((name,))
        change.put(Entry(Model(name=name), {1: version(name, 1)}))
        await change.commit()
    assert await store.entry(name) is not None


async def test_what_older_tables_held_is_kept(database: str) -> None:
    one = version("m", 1, pinned=True)
    model = rows.model_row(Model(name="m", description="ä"))
    del model["residency"]
    old = rows.version_row(one)
    later = ("probe", "parts_waiting", "incomplete", "completion_problem", "scanned")
    for name in (*later, "digest", "provenance"):
        del old[name]
    engine, _ = open_engine(database)
    async with engine.begin() as connection:
        await connection.run_sync(migrate.upgrade, "0001")
        await connection.execute(insert(models).values(model))
        await connection.execute(insert(versions).values(old))
    await engine.dispose()
    store = await Store.open(database)
    assert await store.entry("m") == Entry(Model(name="m", description="ä"), {1: one})
    await store.close()


async def test_a_registry_on_each_database(database: str, tmp_path: Path) -> None:
    python_model(tmp_path / "repo", "m", (1, 2))
    settings = {"database_url": database, "repositories": (tmp_path / "repo",)}
    source = python_model(tmp_path / "other", "fetched")
    async with registry(tmp_path / "data", **settings) as known:
        assert await known.revision() == 1
        assert (await known.model("m")).default_version == 2
        request = pb.RegisterModelVersionRequest(parent="models/n", source=f"file://{source}")
        await known.stub.RegisterModelVersion(request)
    async with registry(tmp_path / "data", **settings) as known:
        assert await known.revision() == 2
        assert (await known.check("n:1")).problem == ""
        (one,) = (await known.stub.ListImports(pb.ListImportsRequest())).imports
        assert one.state == types.IMPORT_STATE_REGISTERED
        assert (await known.version("n:1")).provenance.digest.startswith("sha256:")
        assert (await known.stub.GetDiskUsage(pb.GetDiskUsageRequest())).used_bytes > 0


@pytest.mark.usefixtures("postgres_server")
async def test_a_database_that_is_gone_is_told_as_such() -> None:
    with postgres.server() as folder:
        store = await Store.open(postgres.url(folder, "postgres"))
    for call in (store.revision(), store.hold_lease("a", "1", SECOND), put(store, full_entry())):
        with pytest.raises(NotReady, match="database"):
            await call
    await store.close()


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:"])
def test_databases_that_will_not_do(url: str) -> None:
    with pytest.raises(UnknownDatabase):
        open_engine(url)


async def test_the_lease_over_grpc(tmp_path: Path) -> None:
    async with registry(tmp_path) as known:

        async def hold(holder: str, incarnation: str, seconds: float) -> int:
            request = pb.HoldControllerLeaseRequest(
                holder=holder, incarnation=incarnation, ttl=Duration(nanos=int(seconds * 1e9))
            )
            return (await known.stub.HoldControllerLease(request)).epoch

        assert await hold("a", "1", 0.9) == 1
        assert await hold("a", "1", 0.9) == 1
        assert await hold("a", "2", 0.9) == 2
        refused = await refusal(hold("b", "1", 0.9))
        assert (refused.code, refused.reason) == (StatusCode.ABORTED, "LEASE_HELD")
        assert refused.metadata["holder"] == "a"
        assert 0 < (refused.retry_after or 0) <= 0.9
        for holder, incarnation, ttl, field in (
            ("", "1", 0.9, "holder"),
            ("a", "", 0.9, "incarnation"),
            ("a", "1", 0, "ttl"),
            ("a" * 129, "1", 0.9, "holder"),
        ):
            refused = await refusal(hold(holder, incarnation, ttl))
            assert (refused.reason, refused.metadata["field"]) == ("INVALID_FIELD", field)


async def test_footprints_over_grpc(tmp_path: Path) -> None:
    python_model(tmp_path / "repo", "m", (1, 2, 3))
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        footprints = [
            types.Footprint(
                version=version_name(f"m:{number}"),
                config_digest="d",
                memory={"ram": number},
                load_duration=Duration(nanos=5000),
                uses=0.5 * number,
                last_use_time=Timestamp(seconds=number),
                failure=types.LoadFailure(
                    server="t0",
                    cause="no weights",
                    count=number,
                    retry_time=Timestamp(seconds=number),
                    set_aside=number > 1,
                ),
            )
            for number in (1, 2, 3)
        ]
        revision = await known.revision()
        await known.stub.ReportFootprints(pb.ReportFootprintsRequest(footprints=footprints))
        first = await known.stub.ListFootprints(pb.ListFootprintsRequest(page_size=2))
        assert list(first.footprints) == footprints[:2]
        second = await known.stub.ListFootprints(
            pb.ListFootprintsRequest(page_token=first.next_page_token)
        )
        assert (list(second.footprints), second.next_page_token) == (footprints[2:], "")
        assert await known.revision() == revision
        for change, reason in (
            ({"version": "m:1"}, "INVALID_NAME"),
            ({"version": "models/m/versions/x"}, "INVALID_VERSION"),
            ({"config_digest": ""}, "INVALID_FIELD"),
            ({"memory": {"disk": 1}}, "INVALID_FIELD"),
            ({"load_duration": Duration(seconds=-1)}, "INVALID_FIELD"),
            ({"last_use_time": Timestamp(seconds=-1)}, "INVALID_FIELD"),
            ({"failure": types.LoadFailure(cause="x" * 4097)}, "INVALID_FIELD"),
            ({"failure": types.LoadFailure(count=-1)}, "INVALID_FIELD"),
            ({"failure": types.LoadFailure(retry_time=Timestamp(seconds=-1))}, "INVALID_FIELD"),
            ({"uses": -1.0}, "INVALID_FIELD"),
            ({"uses": float("nan")}, "INVALID_FIELD"),
        ):
            fields: dict[str, Any] = {
                "version": version_name("m:1"),
                "config_digest": "d",
                **change,
            }
            report = pb.ReportFootprintsRequest(footprints=[types.Footprint(**fields)])
            assert (await refusal(known.stub.ReportFootprints(report))).reason == reason
