"""Models, verdicts, aliases and traffic policies, over gRPC."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode

from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.support.registry import (
    Registry,
    ensemble,
    onnx_model,
    python_model,
    refusal,
    registry,
    version_name,
)

pytestmark = pytest.mark.usefixtures("database")

NOT_FOUND, INVALID = StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT
PRECONDITION, ABORTED = StatusCode.FAILED_PRECONDITION, StatusCode.ABORTED


@pytest.fixture
async def known(tmp_path: Path) -> AsyncIterator[Registry]:
    """Model m with versions 1, 2 and 3, and n with 1."""
    python_model(tmp_path / "repo", "m", (1, 2, 3))
    python_model(tmp_path / "repo", "n")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        yield known


async def create(known: Registry, name: str, request_id: str = "", **fields: Any) -> types.Model:
    model = types.Model(name=name, **fields)
    response = await known.stub.CreateModel(
        pb.CreateModelRequest(model=model, request_id=request_id)
    )
    return response.model


async def test_a_model_is_created_and_read(known: Registry) -> None:
    made = await create(known, "models/x", description="about it", labels={"team": "a"})
    assert made.retry_policy == types.RETRY_POLICY_ONCE
    assert made.default_version == 0
    assert made.create_time == made.update_time
    assert made.create_time.seconds > 0
    assert await known.model("x") == made
    again = await refusal(create(known, "models/x"))
    assert (again.code, again.reason) == (StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")


async def test_a_repeated_create_is_answered_with_what_the_first_one_made(known: Registry) -> None:
    before = await known.revision()
    first = await create(known, "models/x", request_id="r1")
    assert await create(known, "models/x", request_id="r1") == first
    assert await known.revision() == before + 1
    other = await refusal(create(known, "models/y", request_id="r1"))
    assert (other.code, other.reason) == (INVALID, "INVALID_FIELD")
    assert other.metadata["field"] == "request_id"


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"name": "models/../etc"}, "INVALID_NAME", "model.name"),
        ({"name": "x"}, "INVALID_NAME", "model.name"),
        ({"name": "models/x", "description": "d" * 4097}, "INVALID_FIELD", "model.description"),
        ({"name": "models/x", "labels": {"": "v"}}, "INVALID_FIELD", "model.labels"),
        ({"name": "models/x", "retry_policy": 9}, "INVALID_FIELD", "model.retry_policy"),
    ],
)
async def test_what_cannot_be_created(
    known: Registry, fields: dict[str, Any], reason: str, field: str
) -> None:
    refused = await refusal(create(known, **fields))
    assert (refused.code, refused.reason) == (INVALID, reason)
    assert refused.metadata["field"] == field


async def test_unknown_models_versions_and_aliases(known: Registry) -> None:
    for call, reason, metadata in (
        (known.model("nix"), "MODEL_NOT_FOUND", {"model": "nix"}),
        (known.version("nix:1"), "MODEL_NOT_FOUND", {"model": "nix"}),
        (
            known.version("m:9"),
            "VERSION_NOT_FOUND",
            {"model": "m", "version": "9", "versions": "1, 2, 3"},
        ),
        (
            known.stub.DeleteAlias(pb.DeleteAliasRequest(name="models/m/aliases/nix")),
            "VERSION_NOT_FOUND",
            {"model": "m", "version": "nix", "versions": "1, 2, 3"},
        ),
        (
            known.stub.ListModelVersions(pb.ListModelVersionsRequest(parent="models/nix")),
            "MODEL_NOT_FOUND",
            {"model": "nix"},
        ),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason, refused.metadata) == (NOT_FOUND, reason, metadata)


async def test_an_update_changes_what_its_mask_names(known: Registry) -> None:
    before = await known.model("m")
    wanted = types.Model(
        name="models/m",
        description="new",
        labels={"a": "b"},
        retry_policy=types.RETRY_POLICY_NEVER,
        etag=before.etag,
    )

    async def update(*paths: str) -> types.Model:
        request = pb.UpdateModelRequest(model=wanted, update_mask=FieldMask(paths=paths))
        return (await known.stub.UpdateModel(request)).model

    first = await update("description")
    assert (first.description, dict(first.labels)) == ("new", {})
    assert first.etag != before.etag
    assert first.update_time.ToNanoseconds() > before.update_time.ToNanoseconds()
    stale = await refusal(update("*"))
    assert (stale.code, stale.reason) == (ABORTED, "ETAG_MISMATCH")
    assert stale.metadata == {"name": "models/m", "given": before.etag, "current": first.etag}
    wanted.etag = ""
    everything = await update("*")
    assert (dict(everything.labels), everything.retry_policy) == ({"a": "b"}, 2)
    for paths in ((), ("etag",), ("labels.a",)):
        refused = await refusal(update(*paths))
        assert (refused.reason, refused.metadata["field"]) == ("INVALID_FIELD", "update_mask")


async def test_an_update_that_changes_nothing_has_no_revision(known: Registry) -> None:
    before, revision = await known.model("m"), await known.revision()
    request = pb.UpdateModelRequest(model=before, update_mask=FieldMask(paths=["*"]))
    assert (await known.stub.UpdateModel(request)).model == before
    assert await known.revision() == revision


async def test_a_version_has_a_declared_memory_and_a_pin(known: Registry) -> None:
    wanted = types.ModelVersion(
        name=version_name("m:1"), declared_memory={"ram": 7}, pinned=True, source="/ignored"
    )

    async def update(*paths: str) -> types.ModelVersion:
        request = pb.UpdateModelVersionRequest(version=wanted, update_mask=FieldMask(paths=paths))
        return (await known.stub.UpdateModelVersion(request)).version

    assert (await update("pinned")).declared_memory == {}
    updated = await update("*")
    assert (updated.pinned, dict(updated.declared_memory)) == (True, {"ram": 7})
    assert updated == await known.version("m:1")
    wanted.etag = "r0"
    assert (await refusal(update("*"))).reason == "ETAG_MISMATCH"
    wanted.declared_memory["disk"] = 1
    assert (await refusal(update("*"))).metadata["field"] == "version.declared_memory"
    assert (await refusal(update("state"))).metadata["field"] == "update_mask"


async def decide(known: Registry, verb: str, name: str, etag: str = "") -> types.ModelVersion:
    request = getattr(pb, f"{verb}ModelVersionRequest")(name=version_name(name), etag=etag)
    return (await getattr(known.stub, f"{verb}ModelVersion")(request)).version


async def test_verdicts_move_the_default(known: Registry) -> None:
    assert (await known.model("m")).default_version == 3
    rejected = await decide(known, "Reject", "m:3")
    assert rejected.state == types.VERSION_STATE_REJECTED
    assert (await known.model("m")).default_version == 2
    revision = await known.revision()
    assert await decide(known, "Reject", "m:3", rejected.etag) == rejected
    assert await known.revision() == revision
    approved = await decide(known, "Approve", "m:3", rejected.etag)
    assert approved.state == types.VERSION_STATE_APPROVED
    stale = await refusal(decide(known, "Reject", "m:3", rejected.etag))
    assert (stale.code, stale.reason) == (ABORTED, "ETAG_MISMATCH")
    assert (await refusal(decide(known, "Approve", "m:0"))).reason == "INVALID_VERSION"


async def set_alias(known: Registry, name: str, version: int, etag: str = "") -> types.Model:
    request = pb.SetAliasRequest(name=f"models/{name}", version=version, etag=etag)
    return (await known.stub.SetAlias(request)).model


async def test_an_alias_is_set_moved_and_deleted(known: Registry) -> None:
    first = await set_alias(known, "m/aliases/default", 1)
    assert (first.default_version, dict(first.aliases)) == (1, {"default": 1})
    moved = await set_alias(known, "m/aliases/default", 2, first.etag)
    assert moved.default_version == 2
    stale = await refusal(set_alias(known, "m/aliases/default", 3, first.etag))
    assert (stale.code, stale.reason) == (ABORTED, "ETAG_MISMATCH")
    request = pb.DeleteAliasRequest(name="models/m/aliases/default", etag=moved.etag)
    assert (await known.stub.DeleteAlias(request)).model.default_version == 3
    await decide(known, "Reject", "m:1")
    for name, version, code, reason in (
        ("m/aliases/x", 9, NOT_FOUND, "VERSION_NOT_FOUND"),
        ("m/aliases/x", 0, INVALID, "INVALID_VERSION"),
        ("m/aliases/1", 1, INVALID, "INVALID_NAME"),
        ("nix/aliases/x", 1, NOT_FOUND, "MODEL_NOT_FOUND"),
        ("m/aliases/x", 1, PRECONDITION, "ILLEGAL_STATE"),
    ):
        refused = await refusal(set_alias(known, name, version))
        assert (refused.code, refused.reason) == (code, reason)


async def set_policy(
    known: Registry, model: str, *arms: tuple[str, int], etag: str = ""
) -> types.Model:
    policy = types.TrafficPolicy(
        name=f"models/{model}/trafficPolicy",
        arms=[types.Arm(target=f"models/{target}", weight=weight) for target, weight in arms],
        etag=etag,
    )
    request = pb.SetTrafficPolicyRequest(traffic_policy=policy)
    return (await known.stub.SetTrafficPolicy(request)).model


async def test_a_traffic_policy_is_set_replaced_and_deleted(known: Registry) -> None:
    await set_alias(known, "n/aliases/live", 1)
    first = await set_policy(known, "m", ("m/versions/1", 90), ("n/aliases/live", 10))
    policy = first.traffic_policy
    assert [(arm.target, arm.weight) for arm in policy.arms] == [
        ("models/m/versions/1", 90),
        ("models/n/aliases/live", 10),
    ]
    second = await set_policy(known, "m", ("m", 1), ("m/versions/1", 0), etag=policy.etag)
    assert second.traffic_policy.etag != policy.etag
    assert second.etag != first.etag
    stale = await refusal(set_policy(known, "m", ("m", 1), etag=policy.etag))
    assert (stale.code, stale.reason) == (ABORTED, "ETAG_MISMATCH")
    request = pb.DeleteTrafficPolicyRequest(
        name="models/m/trafficPolicy", etag=second.traffic_policy.etag
    )
    assert not (await known.stub.DeleteTrafficPolicy(request)).model.HasField("traffic_policy")
    gone = await refusal(known.stub.DeleteTrafficPolicy(request))
    assert gone.reason == "ETAG_MISMATCH"


async def test_a_policy_that_nothing_could_answer_is_refused(known: Registry) -> None:
    await create(known, "models/empty")
    await decide(known, "Reject", "n:1")
    for arms, code, reason in (
        ([("nix", 1)], NOT_FOUND, "MODEL_NOT_FOUND"),
        ([("m/versions/9", 1)], NOT_FOUND, "VERSION_NOT_FOUND"),
        ([("m/aliases/nix", 1)], NOT_FOUND, "VERSION_NOT_FOUND"),
        ([("empty", 1)], PRECONDITION, "NO_APPROVED_VERSION"),
        ([("m", 1), ("n/versions/1", 0)], PRECONDITION, "ILLEGAL_STATE"),
        ([], INVALID, "INVALID_FIELD"),
        ([("m", 0)], INVALID, "INVALID_FIELD"),
    ):
        refused = await refusal(set_policy(known, "m", *arms))
        assert (refused.code, refused.reason) == (code, reason)
    assert (await refusal(set_policy(known, "nix", ("m", 1)))).reason == "MODEL_NOT_FOUND"
    assert (await refusal(set_policy(known, "../m", ("m", 1)))).reason == "INVALID_NAME"


async def delete(known: Registry, name: str, etag: str = "") -> None:
    if ":" in name:
        await known.stub.DeleteModelVersion(
            pb.DeleteModelVersionRequest(name=version_name(name), etag=etag)
        )
    else:
        await known.stub.DeleteModel(pb.DeleteModelRequest(name=f"models/{name}", etag=etag))


async def test_what_is_in_use_stays(known: Registry, tmp_path: Path) -> None:
    await set_alias(known, "m/aliases/live", 1)
    await set_policy(known, "n", ("m/versions/2", 1))
    await known.register("pipeline", ensemble(tmp_path, "pipeline", ["m:3"]))
    for name, hint in (
        ("m:1", "alias 'live' names it"),
        ("m:2", "the traffic policy of model 'n' names it"),
        ("m:3", "models/pipeline/versions/1 requires it"),
        ("m", "the traffic policy of model 'n' names it; models/pipeline/versions/1 requires it"),
    ):
        refused = await refusal(delete(known, name))
        assert (refused.code, refused.reason) == (PRECONDITION, "ILLEGAL_STATE")
        assert refused.metadata["hint"].startswith(hint)
    await delete(known, "pipeline")
    await delete(known, "m:3")
    assert not (known.staging / "m" / "3").exists()
    assert not (known.staging / "pipeline").exists()
    assert (known.staging / "m" / "2").is_dir()


async def test_deletion_wants_the_current_etag(known: Registry) -> None:
    version, model = await known.version("m:1"), await known.model("n")
    assert (await refusal(delete(known, "m:1", "r0"))).reason == "ETAG_MISMATCH"
    assert (await refusal(delete(known, "n", "r0"))).reason == "ETAG_MISMATCH"
    await delete(known, "m:1", version.etag)
    await delete(known, "n", model.etag)
    assert (await refusal(delete(known, "m:1"))).reason == "VERSION_NOT_FOUND"
    assert (await refusal(delete(known, "n"))).reason == "MODEL_NOT_FOUND"
    assert not (known.staging / "n").exists()


async def test_lists_come_in_pages_that_inserts_do_not_shift(known: Registry) -> None:
    for letter in "cag":
        await create(known, f"models/{letter}")

    async def page(token: str) -> pb.ListModelsResponse:
        return await known.stub.ListModels(pb.ListModelsRequest(page_size=2, page_token=token))

    first = await page("")
    assert [model.name for model in first.models] == ["models/a", "models/c"]
    for letter in "bd":
        await create(known, f"models/{letter}")
    second = await page(first.next_page_token)
    assert [model.name for model in second.models] == ["models/d", "models/g"]
    last = await page(second.next_page_token)
    assert [model.name for model in last.models] == ["models/m", "models/n"]
    assert last.next_page_token == ""


async def test_versions_are_listed_for_one_model_or_for_all(known: Registry) -> None:
    async def all_names(parent: str, size: int) -> list[str]:
        found, token = [], ""
        while True:
            request = pb.ListModelVersionsRequest(parent=parent, page_size=size, page_token=token)
            response = await known.stub.ListModelVersions(request)
            found += [version.name.removeprefix("models/") for version in response.versions]
            token = response.next_page_token
            if not token:
                return found

    assert await all_names("models/m", 2) == ["m/versions/1", "m/versions/2", "m/versions/3"]
    assert await all_names("models/-", 3) == [*await all_names("models/m", 0), "n/versions/1"]
    first = await known.stub.ListModelVersions(
        pb.ListModelVersionsRequest(parent="models/m", page_size=1)
    )
    for size, parent, token, field in (
        (-1, "models/m", "", "page_size"),
        (1001, "models/m", "", "page_size"),
        (0, "models/m", "nonsense", "page_token"),
        (0, "models/n", first.next_page_token, "page_token"),
    ):
        request = pb.ListModelVersionsRequest(parent=parent, page_size=size, page_token=token)
        refused = await refusal(known.stub.ListModelVersions(request))
        assert (refused.code, refused.reason) == (INVALID, "INVALID_FIELD")
        assert refused.metadata["field"] == field
    bad = pb.ListModelVersionsRequest(parent="models/..")
    assert (await refusal(known.stub.ListModelVersions(bad))).reason == "INVALID_NAME"


async def test_lists_are_filtered_and_ordered(tmp_path: Path) -> None:
    onnx_model(tmp_path / "repo" / "graph" / "1" / "model.onnx")
    python_model(tmp_path / "repo", "code", (1, 2))
    python_model(tmp_path / "other", "pending")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        await known.register("pending", tmp_path / "other" / "pending", pending=True)
        update = pb.UpdateModelRequest(
            model=types.Model(name="models/code", labels={"team": "search"})
        )
        update.update_mask.paths.append("labels")
        await known.stub.UpdateModel(update)

        async def models(**asked: Any) -> list[str]:
            response = await known.stub.ListModels(pb.ListModelsRequest(**asked))
            return [model.name.removeprefix("models/") for model in response.models]

        assert await models(filter="format = onnx") == ["graph"]
        assert await models(filter="labels.team = search") == ["code"]
        assert await models(filter='state = "PENDING"') == ["pending"]
        assert await models(filter=f'source : "{tmp_path}/repo" AND NOT name = code') == ["graph"]
        assert (await models(order_by="create_time desc"))[0] == "pending"
        request = pb.ListModelVersionsRequest(
            parent="models/-", filter="format = python", order_by="name desc", page_size=2
        )
        first = await known.stub.ListModelVersions(request)
        assert [one.name for one in first.versions] == [
            version_name("pending:1"),
            version_name("code:2"),
        ]
        request.page_token = first.next_page_token
        second = await known.stub.ListModelVersions(request)
        assert [one.name for one in second.versions] == [version_name("code:1")]
        request.filter = "format = onnx"  # the token is of another list
        assert (await refusal(known.stub.ListModelVersions(request))).reason == "INVALID_FIELD"
        refused = await refusal(known.stub.ListModels(pb.ListModelsRequest(filter="size = 3")))
        assert "'size' is not a field" in refused.message
