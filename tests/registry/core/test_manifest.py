"""Which files of a source belong to a version, and which lists of files are refused."""

import pytest

from services.registry.core.errors import InvalidArtifact, UnsafeContent
from services.registry.core.manifest import Item, TreeManifest, inside, models_of, of_version

SHA = "0" * 64


def test_a_manifest_is_known_by_its_content() -> None:
    one, two = Item("a", SHA, 1), Item("b/c", "1" * 64, 2)
    manifest = TreeManifest.of([two, one])
    assert manifest.digest == TreeManifest.of([one, two]).digest
    assert TreeManifest.read(manifest.text) == manifest
    assert (manifest.size, manifest.contents) == (3, {SHA: 1, "1" * 64: 2})
    for text in (b"", b"[]", b"{}", b'{"files": [1]}', b'{"files": [["a"]]}', b"\xff"):
        with pytest.raises(ValueError, match=r".+"):
            TreeManifest.read(text)


@pytest.mark.parametrize("paths", [[], ["../a"], ["a", "a"], ["a", "a/b"], ["/a"], ["a/./b"]])
def test_files_that_cannot_lie_in_one_folder_are_refused(paths: list[str]) -> None:
    with pytest.raises(UnsafeContent):
        TreeManifest.of([Item(path, SHA, 1) for path in paths])


def test_other_versions_are_left_out() -> None:
    paths = inside(["m/1/a", "m/2/a", "m/config.pbtxt", "m/labels/1", "n/1/a"], "m")
    assert set(of_version(paths, 0).values()) == {"2/a", "config.pbtxt", "labels/1"}
    assert set(of_version(paths, 1).values()) == {"1/a", "config.pbtxt", "labels/1"}
    with pytest.raises(InvalidArtifact, match="no folder for version 3, only for 1, 2"):
        of_version(paths, 3)
    bare = {"model.onnx": "model.onnx"}
    assert of_version(bare, 7) == bare


@pytest.mark.parametrize(
    ("paths", "models"),
    [
        (["config.pbtxt", "1/model.py"], {"": [1]}),
        (["1/model.py", "2/model.py"], {"": [1, 2]}),
        (["model.onnx"], {"": [0]}),
        (["a/1/model.py", "b/model.onnx", "README.md"], {"a": [1], "b": [0]}),
        (["a/config.pbtxt"], {"a": [0]}),
        (["7/config.pbtxt", "7/1/model.py"], {"7": [1]}),
        ([".git/config", "a/1/model.py"], {"a": [1]}),
    ],
)
def test_models_are_found_in_a_source(paths: list[str], models: dict[str, list[int]]) -> None:
    assert models_of(paths, "config.pbtxt", {"model.py", "model.onnx"})[0] == models


def test_folders_that_hold_no_model_are_named() -> None:
    _, problems = models_of(["docs/a.md", "bad name/1/model.py"], "config.pbtxt", {"model.py"})
    assert [folder for folder, _ in problems] == ["bad name", "docs"]
