"""Versions from disk, registered one by one or imported as a repository."""

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode
from structlog.testing import capture_logs
from tritonclient.grpc.model_config_pb2 import ModelConfig

from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.support.registry import (
    PYTHON_CODE,
    PYTHON_CONFIG,
    ensemble,
    onnx_model,
    python_model,
    refusal,
    registry,
    tree_of,
    version_name,
)

pytestmark = pytest.mark.usefixtures("database")

APPROVED, PENDING = types.VERSION_STATE_APPROVED, types.VERSION_STATE_PENDING
IS_INVALID = types.VERSION_STATE_INVALID
INVALID_ARGUMENT = StatusCode.INVALID_ARGUMENT


async def test_a_repository_is_imported_at_start_and_left_as_it_was(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    python_model(repository, "a", (1, 2))
    onnx_model(repository / "b" / "1" / "model.onnx")
    (repository / "README.md").write_text("about these")
    before = tree_of(repository)
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        assert (await known.model("a")).default_version == 2
        version = await known.version("a:1")
        assert (version.state, version.source) == (APPROVED, str(repository / "a"))
        assert version.artifact_bytes == len(PYTHON_CODE)
        assert (await known.version("b:1")).state == APPROVED
        assert tree_of(repository) == before


async def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    python_model(repository, "a", (1, 2))
    ensemble(repository, "e", ["a"])
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "config.pbtxt").write_text("nonsense {")
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        revision, staged = await known.revision(), tree_of(known.staging)
        first = await known.import_(repository)
        assert [one.name for one in first.versions] == [
            version_name(name) for name in ("a:1", "a:2", "broken:1", "e:1")
        ]
        assert await known.import_(repository) == first
        assert await known.revision() == revision
        assert tree_of(known.staging) == {**staged, ".": tree_of(known.staging)["."]}
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        assert await known.revision() == revision
        assert tree_of(known.staging) == {**staged, ".": tree_of(known.staging)["."]}


async def test_an_import_says_what_is_no_model(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    python_model(repository, "good", (1,))
    for stray in ("007", "-3", "0"):
        (repository / "good" / stray).mkdir()
    (repository / "bad name" / "1").mkdir(parents=True)
    (repository / "empty").mkdir()
    (repository / ".git").mkdir()
    (repository / "outside").symlink_to(python_model(tmp_path, "elsewhere"))
    async with registry(tmp_path / "data") as known:
        response = await known.import_(repository)
        assert [version.name for version in response.versions] == [version_name("good:1")]
        problems = {Path(one.path).name: one.reason for one in response.problems}
        assert sorted(problems) == ["-3", "0", "007", "bad name", "empty", "outside"]
        assert "outside of the repository" in problems["outside"]
        assert sorted(path.name for path in (known.staging / "good").iterdir()) == [
            "1",
            "config.pbtxt",
        ]


async def test_a_folder_that_cannot_be_imported(tmp_path: Path) -> None:
    async with registry(tmp_path / "data", repositories=(tmp_path / "nix",)) as known:
        gone = await refusal(known.import_(tmp_path / "nix"))
        assert (gone.code, gone.reason) == (INVALID_ARGUMENT, "INVALID_ARTIFACT")
        assert gone.metadata == {
            "path": str(tmp_path / "nix"),
            "problem": "No such file or directory",
        }
        relative = await refusal(known.import_(Path("repo")))
        assert (relative.reason, relative.metadata["field"]) == ("INVALID_FIELD", "path")


async def test_one_model_or_one_versions_content_can_be_imported(tmp_path: Path) -> None:
    python_model(tmp_path, "one", (1, 2))
    onnx_model(tmp_path / "bare" / "model.onnx")
    onnx_model(tmp_path / "numbered" / "4" / "model.onnx")
    async with registry(tmp_path / "data") as known:
        for folder, names in (
            ("one", ["one:1", "one:2"]),
            ("bare", ["bare:1"]),
            ("numbered", ["numbered:4"]),
        ):
            versions = (await known.import_(tmp_path / folder)).versions
            assert [one.name for one in versions] == [version_name(name) for name in names]


async def test_files_changed_in_place_are_taken_over_with_a_warning(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    model = python_model(repository, "a", (1, 2))
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        pin = types.ModelVersion(name=version_name("a:1"), pinned=True)
        mask = FieldMask(paths=["pinned"])
        await known.stub.UpdateModelVersion(
            pb.UpdateModelVersionRequest(version=pin, update_mask=mask)
        )
        before, other = await known.version("a:1"), await known.version("a:2")
        footprint = types.Footprint(
            version=before.name, config_digest=before.config_digest, memory={"ram": 1}
        )
        await known.stub.ReportFootprints(pb.ReportFootprintsRequest(footprints=[footprint]))
        (model / "1" / "model.py").write_text(PYTHON_CODE + "# longer\n")
        with capture_logs() as logs:
            await known.import_(repository)
        after = await known.version("a:1")
        assert after.artifact_bytes == before.artifact_bytes + len("# longer\n")
        assert (after.pinned, after.create_time) == (True, before.create_time)
        assert after.etag != before.etag
        assert await known.version("a:2") == other
        warnings = [line for line in logs if line["log_level"] == "warning"]
        assert [line["version"] for line in warnings] == [before.name]
        assert not (await known.stub.ListFootprints(pb.ListFootprintsRequest())).footprints


async def test_a_footprint_belongs_to_the_files_that_it_was_learned_with(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "a")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:

        async def report(version: types.ModelVersion, ram: int) -> list[tuple[str, int]]:
            footprint = types.Footprint(
                version=version.name,
                config_digest=version.config_digest,
                fingerprint=version.fingerprint,
                memory={"ram": ram},
            )
            await known.stub.ReportFootprints(pb.ReportFootprintsRequest(footprints=[footprint]))
            listed = await known.stub.ListFootprints(pb.ListFootprintsRequest())
            return [(one.fingerprint, one.memory["ram"]) for one in listed.footprints]

        before = await known.version("a:1")
        assert await report(before, 5) == [(before.fingerprint, 5)]
        more = PYTHON_CONFIG + "instance_group [ { count: 8 } ]\n"
        (model / "config.pbtxt").write_text(more)
        await known.import_(tmp_path / "repo")
        after = await known.version("a:1")
        assert after.fingerprint != before.fingerprint
        assert await report(before, 7) == [], "of the former content, which is gone"
        assert await report(after, 3) == [(after.fingerprint, 3)]


async def test_a_config_changed_in_place_has_another_digest(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "a")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        before = await known.version("a:1")
        same = PYTHON_CONFIG + "version_policy { all {} }\ninstance_group [ { count: 3 } ]\n"
        for config, equal in ((same, True), (PYTHON_CONFIG + "max_batch_size: 8\n", False)):
            (model / "config.pbtxt").write_text(config)
            await known.import_(tmp_path / "repo")
            after = await known.version("a:1")
            assert after.config != before.config
            assert (after.config_digest == before.config_digest) is equal


async def test_a_repository_elsewhere_does_not_take_numbers_that_are_given(tmp_path: Path) -> None:
    python_model(tmp_path / "one", "a", (1,))
    python_model(tmp_path / "two", "a", (1, 2))
    async with registry(tmp_path / "data", repositories=(tmp_path / "one",)) as known:
        response = await known.import_(tmp_path / "two")
        (problem,) = response.problems
        assert problem.path == str(tmp_path / "two" / "a")
        assert problem.reason.startswith("models/a is already registered from")
        assert (await known.version("a:1")).source == str(tmp_path / "one" / "a")
        assert (await refusal(known.version("a:2"))).reason == "VERSION_NOT_FOUND"
        assert list(await known.problems()) == [problem]
        shutil.rmtree(tmp_path / "one" / "a")
        assert not (await known.import_(tmp_path / "two")).problems
        assert (await known.version("a:1")).source == str(tmp_path / "two" / "a")


async def test_a_version_whose_files_are_gone_is_invalid_until_they_are_back(
    tmp_path: Path,
) -> None:
    repository = tmp_path / "repo"
    model = python_model(repository, "a", (1, 2))
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        before = await known.version("a:2")
        (model / "2").rename(tmp_path / "2")
        response = await known.import_(repository)
        assert [one.reason for one in response.problems] == ["its folder is gone"]
        gone = await known.version("a:2")
        assert (gone.state, (await known.model("a")).default_version) == (IS_INVALID, 1)
        assert gone.invalid_reason.endswith("its folder is gone")
        assert gone.config == before.config
        (tmp_path / "2").rename(model / "2")
        await known.import_(repository)
        assert (await known.version("a:2")).state == APPROVED
        shutil.rmtree(model)
    async with registry(tmp_path / "data") as known:
        assert {(await known.version(name)).state for name in ("a:1", "a:2")} == {IS_INVALID}


async def test_a_model_folder_registers_its_newest_version(tmp_path: Path) -> None:
    model = python_model(tmp_path, "any", (1, 3))
    async with registry(tmp_path / "data") as known:
        # The folder's name doesn't matter here; a name in the config would.
        newest = await known.register("a", model, declared_memory={"ram": 5}, pending=True)
        assert (newest.name, newest.state) == (version_name("a:3"), PENDING)
        assert dict(newest.declared_memory) == {"ram": 5}
        assert (await known.model("a")).default_version == 0
        assert (await known.register("a", model, version=1)).name == version_name("a:1")


async def test_content_takes_the_folders_number_or_the_next_free_one(tmp_path: Path) -> None:
    onnx_model(tmp_path / "plain" / "model.onnx")
    onnx_model(tmp_path / "7" / "model.onnx")
    async with registry(tmp_path / "data") as known:
        for folder, number, name in (
            ("plain", 0, "a:1"),
            ("7", 0, "a:7"),
            ("plain", 0, "a:8"),
            ("plain", 5, "a:5"),
            ("7", 6, "a:6"),
        ):
            version = await known.register("a", tmp_path / folder, version=number)
            assert (version.name, version.state) == (version_name(name), APPROVED)


async def test_a_numbered_folder_in_a_models_folder_comes_with_the_models_config(
    tmp_path: Path,
) -> None:
    model = python_model(tmp_path, "m", (1, 2))
    async with registry(tmp_path / "data") as known:
        version = await known.register("m", model / "1")
        assert (version.name, version.source) == (version_name("m:1"), str(model))
        assert ModelConfig.FromString(version.config).backend == "python"


async def test_a_repeated_registration_is_answered_with_what_the_first_one_made(
    tmp_path: Path,
) -> None:
    content = onnx_model(tmp_path / "plain" / "model.onnx").parent
    async with registry(tmp_path / "data") as known:
        calls = [known.register("a", content, request_id="once") for _ in range(5)]
        first, *others = await asyncio.gather(*calls)
        assert first.name == version_name("a:1")
        assert all(other == first for other in others)
        assert await known.revision() == 1
        other = await refusal(known.register("b", content, request_id="once"))
        assert (other.code, other.metadata["field"]) == (INVALID_ARGUMENT, "request_id")
        await known.stub.DeleteModel(pb.DeleteModelRequest(name="models/a"))
        again = await refusal(known.register("a", content, request_id="once"))
        assert again.reason == "MODEL_NOT_FOUND"


async def test_what_cannot_be_registered(tmp_path: Path) -> None:
    model = python_model(tmp_path, "m", (1,))
    async with registry(tmp_path / "data") as known:
        await known.register("m", model)
        for call, code, reason in (
            (known.register("m", model), StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"),
            (known.register("m", model, version=2), INVALID_ARGUMENT, "INVALID_ARTIFACT"),
            (known.register("m", tmp_path / "nix"), INVALID_ARGUMENT, "INVALID_ARTIFACT"),
            (known.register("m", Path("relative")), INVALID_ARGUMENT, "INVALID_FIELD"),
            (known.register("m", model, version=-1), INVALID_ARGUMENT, "INVALID_VERSION"),
            (known.register("../m", model), INVALID_ARGUMENT, "INVALID_NAME"),
            (
                known.register("m", model, declared_memory={"ram": -1}),
                INVALID_ARGUMENT,
                "INVALID_FIELD",
            ),
        ):
            refused = await refusal(call)
            assert (refused.code, refused.reason) == (code, reason)


async def test_an_invalid_version_can_be_registered_again_under_its_number(tmp_path: Path) -> None:
    model = python_model(tmp_path, "m", config="backend {")
    async with registry(tmp_path / "data") as known:
        broken = await known.register("m", model)
        assert broken.state == IS_INVALID
        assert broken.invalid_reason.startswith("config.pbtxt: line 1, column 9:")
        approve = pb.ApproveModelVersionRequest(name=broken.name)
        refused = await refusal(known.stub.ApproveModelVersion(approve))
        assert (refused.code, refused.reason) == (
            StatusCode.FAILED_PRECONDITION,
            "ILLEGAL_STATE",
        )
        alias = pb.SetAliasRequest(name="models/m/aliases/a", version=1)
        assert (await refusal(known.stub.SetAlias(alias))).reason == "ILLEGAL_STATE"
        (model / "config.pbtxt").write_text(PYTHON_CONFIG)
        assert (await known.register("m", model)).state == APPROVED


async def test_an_ensemble_names_its_parts_versions(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    # Sorted before its parts, and before the ensemble that it is made of.
    ensemble(repository, "a_top", ["b_mid", "z_part:1"])
    ensemble(repository, "b_mid", ["z_part", "y_part"])
    python_model(repository, "z_part", (1, 2))
    python_model(repository, "y_part")
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        assert await known.revision() == 1
        top, middle = await known.version("a_top:1"), await known.version("b_mid:1")
        assert (top.state, top.ensemble) == (APPROVED, True)
        assert list(top.requires) == [version_name("b_mid:1"), version_name("z_part:1")]
        assert list(middle.requires) == [version_name("z_part:2"), version_name("y_part:1")]
        assert steps(middle) == [2, 1]
        staged = (known.staging / "b_mid" / "config.pbtxt").read_text()
        assert "model_version: 2" in staged
        assert "instance_group" not in staged
        await known.register("z_part", python_model(tmp_path, "other", (3,)))
        assert await known.version("b_mid:1") == middle


async def test_an_ensemble_waits_for_its_parts(tmp_path: Path) -> None:
    folder = ensemble(tmp_path, "e", ["part"])
    async with registry(tmp_path / "data") as known:
        waiting = await known.register("e", folder)
        assert waiting.state == IS_INVALID
        assert waiting.invalid_reason == "its part 'part' is not registered"
        assert steps(waiting) == [-1]
        await known.register("part", python_model(tmp_path, "part"), pending=True)
        pending = await known.version("e:1")
        assert pending.invalid_reason == "no version of its part 'part' is approved"
        approve = pb.ApproveModelVersionRequest(name=version_name("part:1"))
        await known.stub.ApproveModelVersion(approve)
        served = await known.version("e:1")
        assert (served.state, steps(served)) == (APPROVED, [1])
        assert served.config_digest != waiting.config_digest


async def test_an_ensemble_moves_on_when_its_part_is_rejected(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    python_model(repository, "part", (1, 2))
    ensemble(repository, "free", ["part"])
    ensemble(repository, "fixed", ["part:2"])
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        reject = pb.RejectModelVersionRequest(name=version_name("part:2"))
        await known.stub.RejectModelVersion(reject)
        assert steps(await known.version("free:1")) == [1]
        fixed = await known.version("fixed:1")
        assert (fixed.state, steps(fixed)) == (IS_INVALID, [2])
        await known.stub.ApproveModelVersion(
            pb.ApproveModelVersionRequest(name=version_name("part:2"))
        )
        assert (await known.version("fixed:1")).state == APPROVED
        assert steps(await known.version("free:1")) == [1]


async def test_configs_are_rewritten_while_an_import_stages(tmp_path: Path) -> None:
    repository, more = tmp_path / "repo", tmp_path / "more"
    python_model(repository, "part", (1, 2))
    ensemble(repository, "e", ["part"])
    for number in range(100):
        python_model(more, f"m{number}")
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        importing = asyncio.ensure_future(known.import_(more))
        turn = 0
        while not importing.done():
            turn += 1
            one = version_name(f"part:{turn % 2 + 1}")
            other = version_name(f"part:{(turn + 1) % 2 + 1}")
            await known.stub.ApproveModelVersion(pb.ApproveModelVersionRequest(name=one))
            await known.stub.RejectModelVersion(pb.RejectModelVersionRequest(name=other))
        assert len((await importing).versions) == 100
        (chosen,) = steps(await known.version("e:1"))
        assert f"model_version: {chosen}" in (known.staging / "e" / "config.pbtxt").read_text()
        assert sorted(path.name for path in (known.staging / "m99").rglob("*"))[0] == "1"


async def test_ensembles_that_lead_back_to_themselves(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    for name, part in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        ensemble(repository, name, [part])
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        for name in "abcd":
            assert (await known.version(f"{name}:1")).state == IS_INVALID
        loop = (await known.version("a:1")).invalid_reason
        assert loop == "its parts lead back to it: a → b → c → a"


async def test_models_that_a_model_calls_are_required(tmp_path: Path) -> None:
    def calls(text: str) -> str:
        parameter = f'key: "shoal.requires" value {{ string_value: "{text}" }}'
        return f"{PYTHON_CONFIG}\nparameters {{ {parameter} }}\n"

    repository = tmp_path / "repo"
    python_model(repository, "caller", config=calls("a, b:1"))
    python_model(repository, "wrong", config=calls("../a"))
    python_model(repository, "a", (1, 4))
    python_model(repository, "b", (1, 2))
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        caller = await known.version("caller:1")
        assert list(caller.requires) == [version_name("a:4"), version_name("b:1")]
        assert not caller.ensemble
        wrong = await known.version("wrong:1")
        assert "'../a' is not MODEL or MODEL:VERSION" in wrong.invalid_reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    content = onnx_model(tmp_path / "plain" / "model.onnx")
    content.chmod(0)
    async with registry(tmp_path / "data") as known:
        refused = await refusal(known.register("a", content.parent))
        assert refused.metadata == {"path": str(content), "problem": "Permission denied"}


async def test_a_thousand_models_are_imported_while_others_are_answered(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    for number in range(1000):
        python_model(repository, f"m{number}")
    async with registry(tmp_path / "data") as known:
        began = time.process_time()
        importing = asyncio.ensure_future(known.import_(repository))
        answered = 0
        while not importing.done():
            await known.stub.ListFootprints(pb.ListFootprintsRequest())
            answered += 1
            await asyncio.wait({importing}, timeout=0.02)
        assert len((await importing).versions) == 1000
        assert answered > 20
        # Of this process, so that a busy machine doesn't count. Two seconds are usual.
        assert time.process_time() - began < 10


def steps(version: types.ModelVersion) -> list[int]:
    config = ModelConfig.FromString(version.config)
    return [step.model_version for step in config.ensemble_scheduling.step]


async def test_a_client_that_leaves_does_not_stop_a_registration_halfway(tmp_path: Path) -> None:
    content = onnx_model(tmp_path / "plain" / "model.onnx").parent
    async with registry(tmp_path / "data") as known:
        watch = known.stub.WatchCatalog(pb.WatchCatalogRequest())
        await watch.read()
        for number in range(1, 21):
            call = known.stub.RegisterModelVersion(
                pb.RegisterModelVersionRequest(parent="models/a", source=str(content))
            )
            await asyncio.wait({asyncio.ensure_future(call.code())}, timeout=number / 1000)
            call.cancel()
        await known.refresh("a")  # which waits for the registrations of that model
        await known.register("z", content)
        seen: dict[str, types.CatalogEntry] = {}
        while "models/z" not in seen:
            response = await watch.read()
            seen |= {entry.model.name: entry for entry in response.delta.entries}
        watch.cancel()
        versions = seen["models/a"].versions if "models/a" in seen else []
        numbers = sorted(int(version.name.rpartition("/")[2]) for version in versions)
        assert numbers == list(range(1, len(numbers) + 1))
        staged = {path.name for path in (known.staging / "a").iterdir() if path.is_dir()}
        assert staged == {str(number) for number in numbers}


async def test_a_model_may_be_registered_under_another_name(tmp_path: Path) -> None:
    folder = python_model(tmp_path / "repo", "m")
    (folder / "config.pbtxt").write_text('name: "m"\n' + (folder / "config.pbtxt").read_text())
    async with registry(tmp_path / "data") as running:
        version = await running.register("other", folder)
        assert version.state == types.VERSION_STATE_APPROVED, version.invalid_reason
        assert ModelConfig.FromString(version.config).name == "other"


# --- version_policy -------------------------------------------------------------------------------


def policy(chosen: str) -> str:
    return f"{PYTHON_CONFIG}\nversion_policy {{ {chosen} }}"


@pytest.mark.parametrize(
    ("chosen", "offered"),
    [
        ("specific { versions: 1 }", [1]),
        ("specific { versions: [ 1, 3 ] }", [1, 3]),
        ("latest { num_versions: 2 }", [2, 3]),
        ("latest { num_versions: 9 }", [1, 2, 3]),
        ("all { }", [1, 2, 3]),
        ("", [1, 2, 3]),
    ],
)
async def test_the_version_policy_decides_what_is_offered(
    tmp_path: Path, chosen: str, offered: list[int]
) -> None:
    python_model(tmp_path / "repo", "m", (1, 2, 3), policy(chosen))
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        assert (await known.model("m")).default_version == offered[-1]
        for number in (1, 2, 3):
            version = await known.version(f"m:{number}")
            assert version.state == (APPROVED if number in offered else IS_INVALID)
            assert (known.staging / "m" / str(number)).exists() == (number in offered)
            if number not in offered:
                listed = ", ".join(map(str, offered))
                assert version.invalid_reason.endswith(f"leaves it out and offers only {listed}")
                alias = pb.SetAliasRequest(name="models/m/aliases/a", version=number)
                assert (await refusal(known.stub.SetAlias(alias))).reason == "ILLEGAL_STATE"


async def test_another_version_policy_counts_from_the_next_import(tmp_path: Path) -> None:
    folder = python_model(tmp_path / "repo", "m", (1, 2, 3), policy("specific { versions: 1 }"))
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        assert (await known.model("m")).default_version == 1
        (folder / "config.pbtxt").write_text(policy("latest { num_versions: 1 }"))
        await known.import_(tmp_path / "repo")
        states = [(await known.version(f"m:{number}")).state for number in (1, 2, 3)]
        assert states == [IS_INVALID, IS_INVALID, APPROVED]
        assert (await known.model("m")).default_version == 3


async def test_versions_that_a_policy_names_must_be_there(tmp_path: Path) -> None:
    python_model(tmp_path / "repo", "some", (1,), policy("specific { versions: [ 1, 5 ] }"))
    python_model(tmp_path / "repo", "none", (1,), policy("specific { versions: 5 }"))
    async with registry(tmp_path / "data") as known:
        imported = await known.import_(tmp_path / "repo")
        reasons = {Path(one.path).parent.name: one.reason for one in imported.problems}
        assert reasons["some"] == (
            "version 5 is specified for model 'some', but the version directory is not present"
        )
        assert (await known.version("some:1")).state == APPROVED
        none = await known.version("none:1")
        assert none.state == IS_INVALID
        assert none.invalid_reason.startswith("at least one version must be available")


async def test_registering_takes_the_newest_version_that_is_offered(tmp_path: Path) -> None:
    folder = python_model(tmp_path, "m", (1, 2), policy("specific { versions: 1 }"))
    async with registry(tmp_path / "data") as known:
        assert (await known.register("m", folder)).name == "models/m/versions/1"
        left_out = await known.register("m", folder / "2")
        assert (left_out.name, left_out.state) == ("models/m/versions/2", IS_INVALID)
