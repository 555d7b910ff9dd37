"""What a repository holds, where its links may lead, and what becomes of what changes in it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.registry.artifacts.discovery import scan_models
from services.registry.artifacts.repository import find_models
from services.registry.artifacts.tree import MAX_DEPTH
from services.registry.core.errors import InvalidArtifact
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.support.registry import (
    PYTHON_CODE,
    PYTHON_CONFIG,
    Registry,
    onnx_model,
    python_model,
    refusal,
    registry,
    version_name,
)

pytestmark = pytest.mark.usefixtures("database")

APPROVED, IS_INVALID = types.VERSION_STATE_APPROVED, types.VERSION_STATE_INVALID
NOBODY = 65534


# --- what a repository is -------------------------------------------------------------------------


@pytest.mark.parametrize("stray", ["model.py", "config.pbtxt", "model.onnx", "model.pt"])
async def test_files_beside_the_models_of_a_repository_are_ignored(
    tmp_path: Path, stray: str
) -> None:
    repository = tmp_path / "repo"
    python_model(repository, "a")
    onnx_model(repository / "b" / "1" / "model.onnx")
    (repository / stray).write_text(PYTHON_CONFIG)
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        assert (await known.version("a:1")).state == APPROVED
        assert (await known.version("b:1")).state == APPROVED
        assert not await known.problems()


async def test_a_models_folder_with_a_model_inside_is_still_one_model(tmp_path: Path) -> None:
    model = python_model(tmp_path, "m", (1, 2))
    python_model(model, "extras")
    async with registry(tmp_path / "data") as known:
        versions = (await known.import_(model)).versions
        assert [one.name for one in versions] == [version_name("m:1"), version_name("m:2")]


async def test_entries_that_lead_nowhere_or_are_hostile_stop_no_other_model(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    python_model(repository, "good")
    (repository / "loop").symlink_to("loop")
    (repository / "dangling").symlink_to("nowhere")
    deep = python_model(repository, "deep") / "1"
    for _ in range(MAX_DEPTH + 1):
        deep /= "d"
    deep.mkdir(parents=True)
    python_model(repository, "loops")
    (repository / "loops" / "2").symlink_to("2")
    (repository / "loops" / "1" / "again").symlink_to("again")
    python_model(repository, "nested", config="parameters { " * 5000)
    os.mkfifo(python_model(repository, "pipe") / "1" / "pipe")
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        for name in ("good:1", "loops:1"):
            assert (await known.version(name)).state == APPROVED
        assert (await known.version("nested:1")).state == IS_INVALID
        problems = {Path(one.path).name: one.reason for one in await known.problems()}
        assert problems.keys() == {"loop", "dangling", "pipe", "d"}
        assert problems["dangling"] == f"it links to {repository / 'nowhere'}, which is not there"
        assert "folders below its model" in problems["d"]


@contextmanager
def unprivileged() -> Iterator[Path]:
    """Give a folder of somebody who is not root, and act as that user."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.geteuid() == 0
        if root:
            os.chown(folder, NOBODY, -1)
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_its_own_problem() -> None:
    with unprivileged() as repository:
        for name in ("good", "locked", "closed"):
            python_model(repository, name)
        python_model(repository, "half", (1, 2))
        (repository / "locked").chmod(0)
        (repository / "closed").chmod(0o444)  # its names can be listed, and no more
        (repository / "half" / "1").chmod(0)
        models, problems = find_models(repository)
        found, more = scan_models(models, "KIND_CPU", lambda source: (source,))
        for path in (repository / "locked", repository / "closed", repository / "half" / "1"):
            path.chmod(0o755)
    usable = [(one.model, one.number) for one in found if not isinstance(one.scan, Exception)]
    assert usable == [("good", 1), ("half", 2)]
    refused = {(one.path, one.reason) for one in problems + more}
    refused |= {
        (one.scan.metadata["path"], one.scan.metadata["problem"])
        for one in found
        if isinstance(one.scan, InvalidArtifact)
    }
    assert refused == {
        (str(repository / path), "Permission denied")
        for path in ("locked", "closed/config.pbtxt", "half/1")
    }


# --- links ----------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A repository with every kind of link that people make, and one folder outside."""
    repository, outside = tmp_path / "repo", tmp_path / "outside"
    outside.mkdir()
    (outside / "w.bin").write_text("outside")
    (repository / "_shared").mkdir(parents=True)
    (repository / "_shared" / "w.bin").write_text("shared")
    for name in ("weights", "shared", "sibling", "dangling", "version", "absolute"):
        python_model(repository, name)
    (repository / "weights" / "1" / "w.bin").symlink_to("../../../outside/w.bin")
    (repository / "absolute" / "1" / "w.bin").symlink_to(outside / "w.bin")
    (repository / "shared" / "1" / "w.bin").symlink_to("../../_shared/w.bin")
    (repository / "sibling" / "1" / "other.py").symlink_to("../../weights/1/model.py")
    (repository / "dangling" / "1" / "old.bin").symlink_to("/nowhere/old.bin")
    python_model(outside, "elsewhere", (2,))
    (repository / "version" / "2").symlink_to(outside / "elsewhere" / "2")
    (repository / "whole").symlink_to(outside / "elsewhere")
    return repository


INSIDE = {"shared:1", "sibling:1", "version:1"}
OUTSIDE = {"weights:1", "absolute:1", "version:2", "whole:2"}


def _usable(versions: list[types.ModelVersion]) -> set[str]:
    return {
        one.name.removeprefix("models/").replace("/versions/", ":")
        for one in versions
        if one.state == APPROVED
    }


async def _versions(known: Registry) -> set[str]:
    request = pb.ListModelVersionsRequest(parent="models/-")
    return _usable(list((await known.stub.ListModelVersions(request)).versions))


async def test_links_of_a_repository_that_the_operator_names_are_followed(
    tmp_path: Path, linked: Path
) -> None:
    async with registry(tmp_path / "data", repositories=(linked,)) as known:
        assert await _versions(known) == {*INSIDE, *OUTSIDE, "dangling:1"}
        staged = known.staging / "weights" / "1" / "w.bin"
        assert staged.readlink() == tmp_path / "outside" / "w.bin"
        assert not (known.staging / "dangling" / "1" / "old.bin").is_symlink()
    # The same after a restart, where everything is read from the catalogue first.
    async with registry(tmp_path / "data", repositories=(linked,)) as known:
        assert await _versions(known) == {*INSIDE, *OUTSIDE, "dangling:1"}


async def test_a_setting_narrows_where_links_lead(tmp_path: Path, linked: Path) -> None:
    async with registry(tmp_path / "data", repositories=(linked,), link_roots=()) as known:
        assert await _versions(known) == INSIDE
        assert {Path(one.path).name for one in await known.problems()} == {
            *("w.bin", "old.bin", "2", "whole", "_shared")
        }
    roots = (tmp_path / "outside",)
    async with registry(tmp_path / "data", repositories=(linked,), link_roots=roots) as known:
        assert await _versions(known) == INSIDE | OUTSIDE


async def test_links_of_a_repository_that_a_caller_names_stay_inside(
    tmp_path: Path, linked: Path
) -> None:
    async with registry(tmp_path / "data") as known:
        response = await known.import_(linked)
        assert _usable(list(response.versions)) == INSIDE
        refused = await refusal(known.register("alone", linked / "weights"))
        assert "outside /" in refused.metadata["problem"]
    async with registry(tmp_path / "data") as known:
        assert await _versions(known) == INSIDE


async def test_a_caller_does_not_borrow_the_links_of_a_named_repository(
    tmp_path: Path, linked: Path
) -> None:
    python_model(tmp_path / "mine", "m")
    (tmp_path / "mine" / "m" / "1" / "w.bin").symlink_to(tmp_path / "outside" / "w.bin")
    around = linked / ".." / "mine" / "m"
    async with registry(tmp_path / "data", repositories=(linked,)) as known:
        for path in (tmp_path / "mine" / "m", around):
            assert "outside /" in (await refusal(known.register("m", path))).metadata["problem"]


@pytest.mark.parametrize("name", ["1/model.py", "labels.txt", "config.pbtxt"])
async def test_a_link_to_nothing_that_the_config_names_is_refused(
    tmp_path: Path, name: str
) -> None:
    config = PYTHON_CONFIG.replace('"OUT"', '"OUT" label_filename: "labels.txt"')
    model = python_model(tmp_path / "repo", "m", config=config)
    (model / "labels.txt").write_text("cat\n")
    (model / name).unlink()
    (model / name).symlink_to("/nowhere/at/all")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        version = await known.version("m:1")
        assert version.state == IS_INVALID
        assert version.invalid_reason == (
            f"{Path(name).name} is a link to /nowhere/at/all, which does not exist"
        )


# --- duplicates and problems ----------------------------------------------------------------------


async def test_a_model_of_two_repositories_is_served_from_the_first(tmp_path: Path) -> None:
    python_model(tmp_path / "A", "same", (1,))
    python_model(tmp_path / "B", "same", (2, 3))
    both = (tmp_path / "A", tmp_path / "B")
    for _ in range(2):
        async with registry(tmp_path / "data", repositories=both) as known:
            assert await _versions(known) == {"same:1"}
            (problem,) = await known.problems()
            assert problem.path == str(tmp_path / "B" / "same")
            assert problem.reason.startswith(
                f"models/same is already registered from {tmp_path / 'A' / 'same'}"
            )
    # A version that somebody registers himself is no accident.
    async with registry(tmp_path / "data", repositories=(tmp_path / "A",)) as known:
        content = onnx_model(tmp_path / "alone" / "model.onnx").parent
        assert (await known.register("same", content)).name == version_name("same:2")


async def test_what_could_not_be_imported_is_remembered_until_it_can(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    python_model(repository, "good")
    for number in range(3):
        (repository / f"empty{number}").mkdir()
    async with registry(tmp_path / "data") as known:
        assert not await known.problems()
        await known.import_(repository)
    async with registry(tmp_path / "data") as known:
        names = [Path(one.path).name for one in await known.problems()]
        assert names == ["empty0", "empty1", "empty2"]
        first = await known.stub.ListImportProblems(pb.ListImportProblemsRequest(page_size=2))
        rest = pb.ListImportProblemsRequest(page_size=2, page_token=first.next_page_token)
        assert [*first.problems, *(await known.stub.ListImportProblems(rest)).problems] == list(
            await known.problems()
        )
        for number in range(3):
            (repository / f"empty{number}").rmdir()
        await known.import_(repository)
        assert not await known.problems()


async def test_a_repository_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    async with registry(tmp_path / "data", repositories=(tmp_path / "nix",)) as known:
        (problem,) = await known.problems()
        assert (problem.path, problem.reason) == (
            str(tmp_path / "nix"),
            "No such file or directory",
        )


# --- sources that change --------------------------------------------------------------------------


async def test_an_import_names_what_it_changed(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    model = python_model(repository, "a", (1, 2))
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        assert not (await known.import_(repository)).changed
        (model / "1" / "model.py").write_text(PYTHON_CODE + "# longer\n")
        python_model(repository, "b")
        shutil.rmtree(model / "2")
        response = await known.import_(repository)
        assert list(response.changed) == [version_name(name) for name in ("a:1", "a:2", "b:1")]


async def test_a_refresh_finds_new_changed_and_removed_versions(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    model = python_model(repository, "a", (1, 2))
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        before = await known.version("a:1")
        assert not (await known.refresh("b")).HasField("entry")
        python_model(repository, "b")
        assert [one.name for one in (await known.refresh("b")).entry.versions] == [
            version_name("b:1")
        ]
        python_model(repository, "a", (3,))
        (model / "1" / "model.py").write_text(PYTHON_CODE + "# longer\n")
        shutil.rmtree(model / "2")
        entry = (await known.refresh("a")).entry
        assert {one.name: one.state for one in entry.versions} == {
            version_name("a:1"): APPROVED,
            version_name("a:2"): IS_INVALID,
            version_name("a:3"): APPROVED,
        }
        assert (await known.version("a:1")).fingerprint != before.fingerprint
        (repository / "c").mkdir()
        (problem,) = (await known.refresh("c")).problems
        assert problem.reason.startswith("not a model")
        assert await known.problems() == [problem]
        python_model(repository, "c")
        assert not (await known.refresh("c")).problems
        assert not await known.problems()


async def test_a_check_says_what_is_gone_and_takes_over_what_has_changed(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    model = python_model(repository, "a")
    code = model / "1" / "model.py"
    async with registry(tmp_path / "data", repositories=(repository,)) as known:
        before = await known.version("a:1")
        assert await known.check("a:1") == pb.CheckModelVersionResponse(version=before)
        code.write_text(PYTHON_CODE + "# longer\n")
        changed = await known.check("a:1")
        assert (changed.problem, changed.version.state) == ("", APPROVED)
        assert changed.version.fingerprint != before.fingerprint
        assert changed.version == await known.version("a:1")

        code.rename(tmp_path / "model.py")
        lost = await known.check("a:1")
        assert lost.problem == (
            "its files have changed since it was registered: its version folder has no model.py"
        )
        model.rename(tmp_path / "moved")
        gone = await known.check("a:1")
        assert gone.problem == f"its source is gone: {model} does not exist"
        assert gone.version == changed.version, "what is in memory still answers"
        (tmp_path / "moved").rename(model)
        (tmp_path / "model.py").rename(code)
        assert await known.check("a:1") == pb.CheckModelVersionResponse(version=changed.version)


async def test_a_file_that_becomes_a_link_out_is_not_loaded(tmp_path: Path) -> None:
    config = PYTHON_CONFIG.replace('"OUT"', '"OUT" label_filename: "labels.txt"')
    model = python_model(tmp_path / "repo", "m", config=config)
    (model / "labels.txt").write_text("cat\n")
    (tmp_path / "secret").write_text("secret\n")
    async with registry(tmp_path / "data") as known:
        await known.register("m", model)
        (model / "labels.txt").unlink()
        (model / "labels.txt").symlink_to(tmp_path / "secret")
        assert f"it links to {tmp_path / 'secret'}, outside" in (await known.check("m:1")).problem


async def test_a_polled_repository_is_imported_by_itself(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    model = python_model(repository, "a")
    async with registry(tmp_path / "data", repositories=(repository,), poll_seconds=0.02) as known:
        watch = known.stub.WatchCatalog(pb.WatchCatalogRequest())
        before = (await watch.read()).snapshot.entries[0].versions[0].fingerprint
        python_model(repository, "b")
        (entry,) = (await watch.read()).delta.entries
        assert entry.model.name == "models/b"
        (model / "1" / "model.py").write_text(PYTHON_CODE + "# longer\n")
        (entry,) = (await watch.read()).delta.entries
        assert (entry.model.name, entry.versions[0].state) == ("models/a", APPROVED)
        assert entry.versions[0].fingerprint != before
        watch.cancel()
