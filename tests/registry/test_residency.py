"""Residency settings of models: set over gRPC, stored, and sent to the Controller."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode

from services.controller.core.entities import UnitSpec
from services.controller.registry.catalogue import Catalogue
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.support.registry import Registry, python_model, refusal, registry

pytestmark = pytest.mark.usefixtures("database")

FULL = types.Residency(
    min_copies=1,
    max_copies=3,
    idle_ttl=Duration(seconds=600),
    preload=True,
    priority=-2,
    required_labels={"gpu": "a100", "zone": "b"},
)
# Set, and the same as what protobuf makes of what is not.
ZEROS = types.Residency(min_copies=0, idle_ttl=Duration(), preload=False, priority=0)


@pytest.fixture
async def known(tmp_path: Path) -> AsyncIterator[Registry]:
    """Model m with versions 1 and 2."""
    python_model(tmp_path / "repo", "m", (1, 2))
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        yield known


async def update(
    known: Registry, residency: types.Residency, *paths: str, etag: str = ""
) -> types.Model:
    model = types.Model(name="models/m", residency=residency, etag=etag)
    request = pb.UpdateModelRequest(model=model, update_mask=FieldMask(paths=paths))
    return (await known.stub.UpdateModel(request)).model


@pytest.mark.parametrize("asked", [FULL, ZEROS], ids=["full", "zeros"])
async def test_a_model_is_created_with_what_it_asks(
    known: Registry, asked: types.Residency
) -> None:
    model = types.Model(name="models/x", residency=asked)
    made = (await known.stub.CreateModel(pb.CreateModelRequest(model=model))).model
    assert made.residency == asked
    assert await known.model("x") == made


async def test_a_model_that_asks_for_nothing_has_none(known: Registry) -> None:
    assert not (await known.model("m")).HasField("residency")
    await update(known, FULL, "residency")
    assert not (await update(known, types.Residency(), "residency")).HasField("residency")


async def test_an_update_changes_what_its_mask_names(known: Registry) -> None:
    before, revision = await known.model("m"), await known.revision()
    whole = await update(known, FULL, "residency", etag=before.etag)
    assert whole.residency == FULL
    assert whole.etag != before.etag
    assert await known.revision() == revision + 1
    stale = await refusal(update(known, ZEROS, "residency", etag=before.etag))
    assert (stale.code, stale.reason) == (StatusCode.ABORTED, "ETAG_MISMATCH")
    one = await update(known, types.Residency(min_copies=2, priority=7), "residency.min_copies")
    assert one.residency.min_copies == 2
    assert one.residency.priority == -2
    cleared = await update(
        known, types.Residency(), "residency.idle_ttl", "residency.required_labels"
    )
    assert not cleared.residency.HasField("idle_ttl")
    assert not cleared.residency.required_labels
    assert cleared.residency.max_copies == 3
    other = await update(known, types.Residency(), "description")
    assert other.residency == cleared.residency
    everything = await update(known, ZEROS, "*")
    assert everything.residency == ZEROS
    same = await known.revision()
    assert await update(known, ZEROS, "residency") == everything
    assert await known.revision() == same


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"min_copies": 1001}, "min_copies"),
        ({"max_copies": 0}, "max_copies"),
        ({"min_copies": 2, "max_copies": 1}, "max_copies"),
        ({"priority": 11}, "priority"),
        ({"idle_ttl": Duration(seconds=-1)}, "idle_ttl"),
        ({"idle_ttl": Duration(nanos=10)}, "idle_ttl"),
        ({"idle_ttl": Duration(seconds=2**62)}, "idle_ttl"),
        ({"required_labels": {"gpu": "a 100"}}, "required_labels"),
    ],
)
async def test_what_is_not_allowed(known: Registry, asked: dict[str, Any], field: str) -> None:
    residency = types.Residency(**asked)
    model = types.Model(name="models/x", residency=residency)
    create = known.stub.CreateModel(pb.CreateModelRequest(model=model))
    for refused in (await refusal(create), await refusal(update(known, residency, "residency"))):
        assert (refused.code, refused.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert refused.metadata["field"] == f"model.residency.{field}"


async def test_masks_and_copies_that_do_not_go_together(known: Registry) -> None:
    for path in ("residency.gpu", "residency.required_labels.gpu", "residency.idle_ttl.seconds"):
        refused = await refusal(update(known, FULL, path))
        assert refused.metadata["field"] == "update_mask"
        assert "residency.idle_ttl" in refused.message
    await update(known, types.Residency(max_copies=2), "residency.max_copies")
    refused = await refusal(update(known, types.Residency(min_copies=3), "residency.min_copies"))
    assert refused.metadata["field"] == "model.residency.max_copies"
    assert (await known.model("m")).residency == types.Residency(max_copies=2)


async def test_it_outlives_the_process_and_further_versions(tmp_path: Path) -> None:
    python_model(tmp_path / "repo", "m")
    settings = {"repositories": (tmp_path / "repo",)}
    async with registry(tmp_path / "data", **settings) as known:
        wanted = await update(known, FULL, "residency")
    async with registry(tmp_path / "data", **settings) as known:
        assert await known.model("m") == wanted
        await known.register("m", python_model(tmp_path / "more", "m", (7,)))
        assert (await known.model("m")).residency == FULL


async def test_the_controller_hears_of_it(known: Registry) -> None:
    catalogue = Catalogue()
    watch = known.stub.WatchCatalog(pb.WatchCatalogRequest())
    async with aclosing(aiter(watch)) as responses:
        snapshot = (await anext(responses)).snapshot
        assert catalogue.replace(snapshot.entries, (), all_=True) == {"m"}
        first, second = catalogue.specs(["m"])
        assert (asks(first), asks(second)) == (asks_nothing(), asks_nothing())
        for asked in (FULL, ZEROS):
            await update(known, asked, "residency")
            delta = (await anext(responses)).delta
            assert catalogue.replace(delta.entries, (), all_=False) == {"m"}
            first, second = catalogue.specs(["m"])
            if asked is ZEROS:
                assert asks(first) == asks(second) == {**asks_nothing(), "idle_ttl": 0.0}
                continue
            shared = {
                "max_copies": 3,
                "idle_ttl": 600.0,
                "priority": -2,
                "required_labels": {"gpu": "a100", "zone": "b"},
            }
            assert asks(first) == {**shared, "min_copies": 0, "preload": False}
            assert asks(second) == {**shared, "min_copies": 1, "preload": True}
        assert catalogue.replace(delta.entries, (), all_=False) == frozenset()


def asks(spec: UnitSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in asks_nothing()}


def asks_nothing() -> dict[str, Any]:
    return {
        "min_copies": 0,
        "max_copies": None,
        "idle_ttl": None,
        "preload": False,
        "priority": 0,
        "required_labels": {},
    }
