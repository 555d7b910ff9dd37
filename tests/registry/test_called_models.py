"""Models that call others: what the Registry learns of it."""

from pathlib import Path

import pytest

from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.support.registry import PYTHON_CONFIG, python_model, refusal, registry, version_name

pytestmark = pytest.mark.usefixtures("database")

CODE, CALL = types.REQUIREMENT_SOURCE_CODE, types.REQUIREMENT_SOURCE_CALL
CONFIG = types.REQUIREMENT_SOURCE_CONFIG
CALLER = 'import x\nx.InferenceRequest(model_name="callee")\n'
DECLARED = 'parameters { key: "shoal.requires" value { string_value: "%s" } }\n'


def caller(repository: Path, config: str = PYTHON_CONFIG, code: str = CALLER) -> Path:
    folder = python_model(repository, "caller", config=config)
    (folder / "1" / "model.py").write_text(code)
    return folder


def parts(version: types.ModelVersion) -> list[tuple[str, int, bool]]:
    assert [one.version for one in version.requirements] == list(version.requires)
    return [(one.version, one.source, one.unversioned) for one in version.requirements]


async def test_what_code_names_is_required_once_it_is_registered(tmp_path: Path) -> None:
    caller(tmp_path / "repo")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        before = await known.version("caller:1")
        assert (before.state, parts(before)) == (types.VERSION_STATE_APPROVED, [])
        python_model(tmp_path / "other", "callee", (1, 2))
        await known.import_(tmp_path / "other")
        found = parts(await known.version("caller:1"))
        assert found == [(version_name("callee:2"), CODE, True)]
        python_model(tmp_path / "more", "callee", (3,))
        await known.import_(tmp_path / "more")
        assert parts(await known.version("caller:1")) == found, "it is pinned"
        await known.stub.DeleteModel(pb.DeleteModelRequest(name="models/callee"))
        after = await known.version("caller:1")
        assert (after.state, parts(after)) == (types.VERSION_STATE_APPROVED, [])


@pytest.mark.parametrize(
    ("declared", "expected"),
    [("", []), ("other", [("other:1", CONFIG, True)]), ("other:1", [("other:1", CONFIG, False)])],
)
async def test_what_is_declared_counts_instead_of_the_code(
    declared: str, expected: list[tuple[str, int, bool]], tmp_path: Path
) -> None:
    caller(tmp_path / "repo", PYTHON_CONFIG + DECLARED % declared)
    python_model(tmp_path / "repo", "callee")
    python_model(tmp_path / "repo", "other")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        found = parts(await known.version("caller:1"))
        assert found == [(version_name(name), *how) for name, *how in expected]


async def test_what_a_version_was_seen_to_call_is_kept_until_its_files_change(
    tmp_path: Path,
) -> None:
    folder = caller(tmp_path / "repo", code="pass\n")
    python_model(tmp_path / "repo", "callee")
    repositories = (tmp_path / "repo",)
    async with registry(tmp_path / "data", repositories=repositories) as known:

        async def report(model: str) -> types.ModelVersion:
            request = pb.ReportCallsRequest(name=version_name("caller:1"), models=[model])
            return (await known.stub.ReportCalls(request)).version

        seen = await report("models/callee")
        assert parts(seen) == [(version_name("callee:1"), CALL, True)]
        assert await report("models/callee") == seen, "nothing new"
        assert await report("models/caller") == seen, "a model is no part of itself"
        assert (await refusal(report("models/nobody"))).reason == "MODEL_NOT_FOUND"
        assert (await refusal(report("callee"))).reason == "INVALID_NAME"
        for index in range(16):
            python_model(tmp_path / "more", f"m{index}")
        await known.import_(tmp_path / "more")
        for index in range(15):
            await report(f"models/m{index}")
        assert (await refusal(report("models/m15"))).reason == "INVALID_FIELD"
    async with registry(tmp_path / "data", repositories=repositories) as known:
        assert len(parts(await known.version("caller:1"))) == 16, "the same after a restart"
        (folder / "1" / "model.py").write_text("pass  # changed\n")
        await known.import_(tmp_path / "repo")
        assert parts(await known.version("caller:1")) == []
