"""The staging tree, and the folders that it links to."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from grpc import StatusCode
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.registry.artifacts import bytecode
from services.registry.artifacts.staging import MARKER, NotStaging
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.support.registry import (
    PYTHON_CONFIG,
    TENSORS,
    Registry,
    onnx_model,
    python_model,
    refusal,
    registry,
    tree_of,
    version_name,
)

pytestmark = pytest.mark.usefixtures("database")

CACHE = f"__pycache__/model.{sys.implementation.cache_tag}.pyc"


async def test_folders_are_real_and_files_are_links(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m")
    (model / "1" / "deep" / "er").mkdir(parents=True)
    (model / "1" / "deep" / "er" / "weights.bin").write_bytes(b"123")
    (model / "labels.txt").write_text("cat\n")
    before = tree_of(tmp_path / "repo")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        staged = known.staging / "m"
        weights = staged / "1" / "deep" / "er" / "weights.bin"
        assert weights.readlink() == model / "1" / "deep" / "er" / "weights.bin"
        assert not weights.parent.is_symlink()
        assert (staged / "labels.txt").readlink() == model / "labels.txt"
        assert (await known.version("m:1")).artifact_bytes == 3 + before["m/1/model.py"][0]
        version = await known.version("m:1")
        on_disk = text_format.Parse((staged / "config.pbtxt").read_text(), ModelConfig())
        assert on_disk == ModelConfig.FromString(version.config)
        assert tree_of(tmp_path / "repo") == before


async def test_python_never_writes_into_a_staged_version(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m")
    (model / "1" / "parts").mkdir()
    (model / "1" / "parts" / "side.py").write_text("ANSWER = 42\n")
    (model / "1" / "model.py").write_text("import parts.side\nprint(parts.side.ANSWER)\n")
    (model / "1" / "template.py").write_text("this is no {{ python }}\n")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        assert (await known.version("m:1")).state == types.VERSION_STATE_APPROVED
        staged = known.staging / "m" / "1"
        before = tree_of(staged)
        assert CACHE in before

        def imported() -> str:
            command = [sys.executable, "-c", "import model; print(model.__cached__)"]
            return subprocess.run(
                command, cwd=staged, capture_output=True, text=True, check=True
            ).stdout

        assert imported() == f"42\n{staged / CACHE}\n"
        assert tree_of(staged) == before
        # Code that was changed since runs once it is imported again, and not before.
        (model / "1" / "model.py").write_text("print('changed')\n")
        assert imported().startswith("42\n")
        await known.import_(tmp_path / "repo")
        assert imported().startswith("changed\n")


async def test_the_config_on_disk_is_the_newest_versions(tmp_path: Path) -> None:
    def content(number: int, batch: int) -> Path:
        folder = onnx_model(tmp_path / str(number) / "model.onnx").parent
        (folder / "config.pbtxt").write_text(
            f"max_batch_size: {batch}\nbackend: 'onnxruntime'\n"
            + TENSORS.replace('"IN"', '"x"').replace('"OUT"', '"y"')
        )
        return folder

    async with registry(tmp_path / "data") as known:
        path = known.staging / "m" / "config.pbtxt"
        await known.register("m", content(2, 2))
        assert "max_batch_size: 2" in path.read_text()
        await known.register("m", content(1, 1))
        assert "max_batch_size: 2" in path.read_text()
        assert not (path.parent / "2" / "config.pbtxt").exists()
        await known.register("m", content(3, 3))
        assert "max_batch_size: 3" in path.read_text()
        await known.stub.DeleteModelVersion(pb.DeleteModelVersionRequest(name=version_name("m:3")))
        assert "max_batch_size: 2" in path.read_text()


@pytest.mark.parametrize("place", ["1", ".", "1/deep"])
@pytest.mark.parametrize("target", ["file", "folder", "config"])
async def test_links_out_of_the_source_are_refused(tmp_path: Path, place: str, target: str) -> None:
    model = python_model(tmp_path / "repo", "m")
    (model / "1" / "deep").mkdir()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text(PYTHON_CONFIG)
    link = model / place / ("config.pbtxt" if target == "config" else "link")
    link.unlink(missing_ok=True)
    secret = tmp_path / "secrets" / ("" if target == "folder" else "key")
    link.symlink_to(secret)
    async with registry(tmp_path / "data") as known:
        refused = await refusal(known.register("m", model))
        assert (refused.code, refused.reason) == (
            StatusCode.INVALID_ARGUMENT,
            "INVALID_ARTIFACT",
        )
        assert "outside /" in refused.metadata["problem"]
        response = await known.import_(tmp_path / "repo")
        assert [one.path for one in response.problems] == [str(link)]
        assert not response.versions
        assert not (known.staging / "m").exists()


async def test_a_version_folder_elsewhere_is_refused(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m")
    python_model(tmp_path, "elsewhere", (2,))
    (model / "2").symlink_to(tmp_path / "elsewhere" / "2")
    (model / "3").symlink_to("1")
    async with registry(tmp_path / "data") as known:
        assert "outside /" in (await refusal(known.register("m", model, version=2))).message
        assert (await known.register("m", model)).name == version_name("m:3")
        assert (known.staging / "m" / "3" / "model.py").readlink() == model / "1" / "model.py"


async def test_a_file_beside_the_config_becomes_a_folder_and_back(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m")
    async with registry(tmp_path / "data") as known:
        for _ in range(2):
            (model / "x").write_text("a file")
            assert not (await known.import_(tmp_path / "repo")).problems
            assert (known.staging / "m" / "x").is_symlink()
            (model / "x").unlink()
            (model / "x").mkdir()
            (model / "x" / "y").write_text("a file in a folder")
            assert not (await known.import_(tmp_path / "repo")).problems
            assert (known.staging / "m" / "x" / "y").is_symlink()
            shutil.rmtree(model / "x")


async def test_links_inside_the_source_are_followed(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m", (1, 2))
    (model / "shared").mkdir()
    (model / "shared" / "weights.bin").write_bytes(b"1234")
    (model / "1" / "weights.bin").symlink_to("../shared/weights.bin")
    (model / "1" / "all").symlink_to("../shared")
    (model / "2" / "nowhere").symlink_to("nix")
    async with registry(tmp_path / "data") as known:
        response = await known.import_(tmp_path / "repo")
        assert [one.name for one in response.versions] == [
            version_name("m:1"),
            version_name("m:2"),
        ]
        assert not response.problems
        assert sorted(path.name for path in (known.staging / "m" / "2").iterdir()) == [
            "__pycache__",
            "model.py",
        ]
        staged = known.staging / "m" / "1"
        assert (staged / "weights.bin").readlink() == model / "shared" / "weights.bin"
        assert (staged / "all" / "weights.bin").is_symlink()
        assert not (staged / "all").is_symlink()
        (model / "1" / "all" / "loop").symlink_to(".")
        assert "a folder above it" in (await known.import_(tmp_path / "repo")).problems[-1].reason


async def test_relative_links_out_of_the_source_are_refused(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m")
    (tmp_path / "key").write_text("secret")
    (model / "1" / "link").symlink_to("../../../key")
    async with registry(tmp_path / "data") as known:
        refused = await refusal(known.register("m", model))
        assert "outside /" in refused.metadata["problem"]


async def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m")
    os.mkfifo(model / "1" / "pipe")
    async with registry(tmp_path / "data") as known:
        refused = await refusal(known.register("m", model))
        assert refused.metadata["problem"] == "it is neither a file nor a folder"


async def test_versions_share_the_files_beside_their_config(tmp_path: Path) -> None:
    def content(number: int, labels: str) -> Path:
        folder = python_model(tmp_path / f"from{number}", "m", (number,))
        (folder / "labels.txt").write_text(labels)
        (folder / "config.pbtxt").write_text(
            PYTHON_CONFIG.replace('"OUT"', '"OUT" label_filename: "labels.txt"')
        )
        return folder

    async with registry(tmp_path / "data") as known:
        first = await known.register("m", content(1, "cat\ndog\n"))
        same = await known.register("m", content(2, "cat\ndog\n"))
        assert same.config_digest == first.config_digest
        other = content(3, "dog\ncat\n")
        refused = await refusal(known.register("m", other))
        assert refused.reason == "INVALID_ARTIFACT"
        assert refused.metadata["path"] == str(other / "labels.txt")
        for number in (1, 2):
            await known.stub.DeleteModelVersion(
                pb.DeleteModelVersionRequest(name=version_name(f"m:{number}"))
            )
        third = await known.register("m", other)
        assert third.config_digest != first.config_digest
        assert (known.staging / "m" / "labels.txt").read_text() == "dog\ncat\n"


async def test_files_beside_the_config_come_and_go_with_an_import(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m")
    (model / "warmup").mkdir()
    (model / "warmup" / "input").write_text("1")
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        staged, before = known.staging / "m", await known.version("m:1")
        assert (staged / "warmup" / "input").is_symlink()
        (model / "warmup" / "input").write_text("2")
        (model / "more.txt").write_text("")
        await known.import_(tmp_path / "repo")
        after = await known.version("m:1")
        assert after.config_digest != before.config_digest
        assert (staged / "more.txt").is_symlink()
        (model / "more.txt").unlink()
        await known.import_(tmp_path / "repo")
        assert not (staged / "more.txt").is_symlink()


async def damaged(known: Registry) -> None:
    """What crashes and curious people leave behind."""
    shutil.rmtree(known.staging / "m" / "1")
    (known.staging / "m" / "2" / "model.py").unlink()
    (known.staging / "m" / "3" / CACHE).unlink()
    (known.staging / "m" / "config.pbtxt").unlink()
    (known.staging / ".incoming" / "made").mkdir(parents=True)
    (known.staging / "m" / "9").mkdir()
    (known.staging / "stranger" / "1").mkdir(parents=True)


async def test_a_start_mends_the_tree(tmp_path: Path) -> None:
    model = python_model(tmp_path, "m", (1, 2, 3))
    async with registry(tmp_path / "data") as known:
        await known.import_(model)
        revision = await known.revision()
        before = set(tree_of(known.staging))
        await damaged(known)
    async with registry(tmp_path / "data") as known:
        assert set(tree_of(known.staging)) == before
        assert await known.revision() == revision


async def test_a_folder_of_somebody_elses_is_never_taken_for_staging(tmp_path: Path) -> None:
    model = python_model(tmp_path / "precious", "m")
    before = tree_of(tmp_path / "precious")
    with pytest.raises(NotStaging, match="neither empty nor a staging folder"):
        async with registry(tmp_path / "data", staging_dir=model.parent):
            pass
    assert tree_of(tmp_path / "precious") == before


async def test_two_registries_never_share_a_staging_folder(tmp_path: Path) -> None:
    async with registry(tmp_path):
        with pytest.raises(NotStaging, match="in use"):
            async with registry(tmp_path):
                pass
    async with registry(tmp_path):
        pass


async def test_data_inside_a_repository_is_not_imported(tmp_path: Path) -> None:
    python_model(tmp_path, "m")
    async with registry(tmp_path / ".shoal", repositories=(tmp_path,)) as known:
        assert (known.staging / MARKER).exists()
        for _ in range(2):
            versions = (await known.import_(tmp_path)).versions
            assert [one.name for one in versions] == [version_name("m:1")]


def test_the_caches_are_of_the_kind_that_is_never_checked() -> None:
    content = bytecode.compiled(b"x = 1\n", Path("/staged/x.py"))
    assert content is not None
    assert content[:4] == importlib.util.MAGIC_NUMBER
    assert content[4:8] == b"\x01\0\0\0"
    assert bytecode.compiled(b"x = = 1\n", Path("/staged/x.py")) is None
    assert bytecode.cache_of("a/b.py") == f"a/__pycache__/b.{sys.implementation.cache_tag}.pyc"
    assert bytecode.cache_of("a/b.txt") is None
