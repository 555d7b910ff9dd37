"""Tests of shoal.client against a real Registry."""

import asyncio
import inspect
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, closing
from datetime import UTC
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from shoal.client import (
    Aborted,
    AlreadyExists,
    AsyncClient,
    CallFailed,
    Client,
    NotFound,
    Residency,
    connect,
    connect_async,
)
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.support.cli import NO_REGISTRY, registry_alone
from tests.support.clients import KINDS, either
from tests.support.registry import python_model

both = pytest.mark.parametrize("kind", KINDS)

UNKNOWN = pb.GetModelRequest(name="models/nope")


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a Registry with models a, b and c."""
    for name in ("a", "b", "c"):
        python_model(tmp_path / "repo", name)
    async with registry_alone(tmp_path / "data", repositories=(tmp_path / "repo",)) as shell:
        yield shell.registry


async def test_a_refusal_has_its_reason_and_its_variables(address: str) -> None:
    async with connect_async(registry=address) as shoal:
        with pytest.raises(CallFailed) as caught:
            await shoal.call(shoal.registry.GetModel, UNKNOWN)
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert error.metadata == {"model": "nope"}
    assert "'nope' is not found" in error.message
    assert (error.address, error.retry_after, error.unreachable) == (address, None, False)
    assert str(error) == f"MODEL_NOT_FOUND: {error.message}"


async def test_without_asyncio_it_is_the_same(address: str) -> None:
    def refused() -> CallFailed:
        with connect(registry=address) as shoal, pytest.raises(CallFailed) as caught:
            shoal.call(shoal.registry.GetModel, UNKNOWN)
        return caught.value

    error = await asyncio.to_thread(refused)
    assert (error.reason, error.metadata) == ("MODEL_NOT_FOUND", {"model": "nope"})
    assert error.address == address


async def test_when_to_try_again(address: str) -> None:
    def lease(holder: str) -> pb.HoldControllerLeaseRequest:
        return pb.HoldControllerLeaseRequest(
            holder=holder, incarnation="1", ttl=Duration(seconds=10)
        )

    async with connect_async(registry=address) as shoal:
        await shoal.call(shoal.registry.HoldControllerLease, lease("first"))
        with pytest.raises(CallFailed) as caught:
            await shoal.call(shoal.registry.HoldControllerLease, lease("second"))
    assert caught.value.reason == "LEASE_HELD"
    assert caught.value.retry_after == pytest.approx(10, abs=3)


async def test_nobody_there() -> None:
    async with connect_async(registry=NO_REGISTRY) as shoal:
        with pytest.raises(CallFailed) as caught:
            await shoal.call(shoal.registry.GetModel, UNKNOWN)
    assert caught.value.unreachable
    assert (caught.value.reason, caught.value.address) == ("", NO_REGISTRY)


async def test_every_call_has_a_deadline() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with connect_async(registry=address, timeout=0.2) as shoal:
            with pytest.raises(CallFailed) as caught:
                await shoal.call(shoal.registry.GetModel, UNKNOWN)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not caught.value.unreachable


async def test_all_pages_of_a_list(address: str) -> None:
    request = pb.ListModelsRequest(page_size=2)
    async with connect_async(registry=address) as shoal:
        pages = [page async for page in shoal.pages(shoal.registry.ListModels, request)]

    def read() -> list[pb.ListModelsResponse]:
        with connect(registry=address) as shoal:
            return list(shoal.pages(shoal.registry.ListModels, request))

    assert [[model.name for model in page.models] for page in pages] == [
        ["models/a", "models/b"],
        ["models/c"],
    ]
    assert request.page_token == ""
    assert await asyncio.to_thread(read) == pages


async def test_a_watch_goes_on_until_it_is_closed(address: str) -> None:
    async with connect_async(registry=address) as shoal:
        watch = shoal.stream(shoal.registry.WatchCatalog, pb.WatchCatalogRequest())
        async with aclosing(watch):
            snapshot = await anext(watch)
            assert len(snapshot.snapshot.entries) == 3
            created = pb.CreateModelRequest(model=types.Model(name="models/d"))
            await shoal.call(shoal.registry.CreateModel, created)
            async for response in watch:
                if response.HasField("delta"):
                    break
            assert [entry.model.name for entry in response.delta.entries] == ["models/d"]


async def test_a_watch_that_breaks_off(address: str) -> None:
    def watched() -> int:
        with connect(registry=address) as shoal:
            request = pb.WatchCatalogRequest()
            with pytest.raises(CallFailed) as caught:
                for _ in shoal.stream(shoal.registry.WatchCatalog, request, timeout=0.3):
                    pass
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            with closing(shoal.stream(shoal.registry.WatchCatalog, request)) as watch:
                return len(next(iter(watch)).snapshot.entries)

    assert await asyncio.to_thread(watched) == 3


@both
async def test_a_models_life(address: str, tmp_path: Path, kind: str) -> None:
    source = python_model(tmp_path / "other", "new", versions=(1, 2))
    async with either(kind, registry=address) as ask:
        given = {"version": 1, "declared_memory": {"ram": 1 << 20}, "request_id": "once"}
        first = await ask("register", "new", source, **given)
        assert (first.model, first.version, first.state) == ("new", 1, "APPROVED")
        assert first.declared_memory == {"ram": 1 << 20}
        assert (first.source, first.create_time.tzinfo) == (str(source), UTC)
        assert await ask("register", "new", source, **given) == first
        with pytest.raises(AlreadyExists):
            await ask("register", "new", source, version=1)
        second = await ask("register", "new", source, version=2, pending=True)
        assert (second.version, second.state) == (2, "PENDING")

        assert (await ask("model", "new")).default_version == 1
        assert (await ask("approve", "new", 2)).state == "APPROVED"
        assert (await ask("model", "new")).default_version == 2
        assert (await ask("set_alias", "new", "older", 1)).aliases == {"older": 1}
        assert (await ask("reject", "new", "older")).state == "REJECTED"
        assert [one.version for one in await ask("versions", "new")] == [1, 2]
        assert (await ask("delete_alias", "new", "older")).aliases == {}

        await ask("delete", "new", 1)
        assert [one.version for one in await ask("versions", "new")] == [2]
        await ask("delete", "new")
        with pytest.raises(NotFound) as gone:
            await ask("model", "new")
        assert gone.value.reason == "MODEL_NOT_FOUND"


@both
async def test_a_version_that_cannot_be_served(address: str, tmp_path: Path, kind: str) -> None:
    more = tmp_path / "more"
    (more / "empty" / "1").mkdir(parents=True)
    (more / "nothing").mkdir()
    async with either(kind, registry=address) as ask:
        made = await ask("register", "empty", more / "empty")
        assert (made.state, made.invalid_reason != "") == ("INVALID", True)
        found = await ask("import_repository", more)
        assert await ask("import_problems") == found.problems
        assert not found.changed
    assert [(one.model, one.state) for one in found.versions] == [("empty", "INVALID")]
    assert found.problems.keys() == {str(more / "nothing")}


@both
async def test_what_a_model_asks_for(address: str, kind: str) -> None:
    wanted = Residency(
        min_copies=0, idle_ttl=1.5, preload=False, priority=-3, required_labels={"gpu": "a100"}
    )
    async with either(kind, registry=address) as ask:
        before = await ask("model", "a")
        assert (before.residency, before.traffic) == (Residency(), ())
        changed = await ask("update_model", "a", residency=wanted, labels={"team": "x"})
        assert (changed.residency, changed.labels) == (wanted, {"team": "x"})
        changed = await ask("update_model", "a", description="d", retry_policy="NEVER")
        assert (changed.description, changed.retry_policy) == ("d", "NEVER")
        assert changed.residency == wanted
        assert (await ask("update_model", "a", residency=Residency())).residency == Residency()
        with pytest.raises(Aborted) as stale:
            await ask("update_model", "a", description="e", etag=before.etag)
        assert stale.value.reason == "ETAG_MISMATCH"
        with pytest.raises(ValueError, match="SOMETIMES"):
            await ask("update_model", "a", retry_policy="SOMETIMES")


@both
async def test_traffic_in_few_words(address: str, kind: str) -> None:
    async with either(kind, registry=address) as ask:
        await ask("set_alias", "a", "old", 1)
        changed = await ask("set_traffic", "a", {1: 5, "old": 3, "b": 2, "c:1": 1})
        assert [(arm.model, arm.version, arm.weight) for arm in changed.traffic] == [
            ("a", "1", 5),
            ("a", "old", 3),
            ("b", "", 2),
            ("c", "1", 1),
        ]
        assert (await ask("clear_traffic", "a")).traffic == ()


async def test_lists_are_whole(tmp_path: Path) -> None:
    async with registry_alone(tmp_path) as shell, connect_async(registry=shell.registry) as shoal:
        for number in range(101):  # more than a page
            request = pb.CreateModelRequest(model=types.Model(name=f"models/m{number:03}"))
            await shoal.call(shoal.registry.CreateModel, request)
        found = [model.name for model in await shoal.models()]
    assert found == [f"m{number:03}" for number in range(101)]


def test_help_shows_what_a_method_takes() -> None:
    for client in (Client, AsyncClient):
        shown = str(inspect.signature(client.set_alias))
        assert shown.startswith("(self, /, model: str, alias: str, version: int")
        assert "when none is requested" in (client.set_alias.__doc__ or "")
    with connect(registry=NO_REGISTRY) as shoal:
        assert str(inspect.signature(shoal.set_alias)).startswith("(model: str")


def test_both_clients_have_the_same_methods() -> None:
    def public(client: type) -> set[str]:
        return {name for name in dir(client) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)


def test_a_service_without_an_address() -> None:
    with (
        connect(registry=NO_REGISTRY) as shoal,
        pytest.raises(ValueError, match="connect\\(router="),
    ):
        assert shoal.router is not None


def test_it_needs_no_more_than_grpc_and_protobuf() -> None:
    code = (
        "import sys\n"
        "for name in ('typer', 'rich', 'numpy', 'tritonclient', 'pydantic', 'services',\n"
        "             'structlog', 'grpc_health', 'opentelemetry'):\n"
        "    sys.modules[name] = None\n"
        "from shoal.client import connect\n"
        "connect(registry='127.0.0.1:1', controller='127.0.0.1:1', router='127.0.0.1:1').close()\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
