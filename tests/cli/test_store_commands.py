"""Sources, uploads and the store's disk on the command line, with a real Registry."""

from pathlib import Path

import pytest

from shoal.cli.imports import model_in
from tests.cli.test_commands import run
from tests.support.cli import Shell
from tests.support.registry import python_model

__all__ = ["run"]


async def test_a_source_is_registered_followed_and_shown(run: Shell, tmp_path: Path) -> None:
    source = f"file://{python_model(tmp_path / 'more', 'n', (1, 2))}"
    done = await run("register", source)
    assert (done.status, done.out[:24]) == (0, "registered n:2: APPROVED")
    done = await run("register", source, "--name", "other", "--no-wait", "--json")
    (started,) = done.json["imports"]
    assert (done.status, started["model"]) == (0, "models/other")
    await run("register", source, "--name", "other", "--version", "1")

    heading, row = (await run("versions", "n")).out.splitlines()
    assert heading.split()[:4] == ["version", "state", "size", "registered"]
    assert row.split()[:2] == ["2", "APPROVED"]
    assert " local  " in row
    assert f"{source} at " in row
    version = (await run("versions", "n", "--json")).json["versions"][0]
    assert version["provenance"]["source"]["scheme"] == "file"

    listed = (await run("imports", "--json")).json["imports"]
    assert [one["reason"] for one in listed] == ["", "", ""]
    assert len((await run("imports", "n")).out.splitlines()) == 2

    usage = (await run("disk")).out.splitlines()
    assert "without a limit" in usage[0]
    assert usage[2].split() == ["versions", "size", "own", "on", "disk", "stays", "because"]
    assert (await run("gc", "--dry-run")).out == "would free 0 B of 0 items\n"


async def test_models_are_filtered(run: Shell, tmp_path: Path) -> None:
    source = python_model(tmp_path / "more", "n")
    await run("register", source, "--pending")
    done = await run("models", "--filter", "state = PENDING", "--json")
    assert [one["name"] for one in done.json["models"]] == ["models/n"]
    done = await run("models", "--order-by", "create_time desc", "--json")
    assert [one["name"] for one in done.json["models"]] == ["models/n", "models/m"]
    done = await run("models", "--filter", "size = 3")
    assert (done.status, done.out) == (1, "")
    assert "'size' is not a field" in done.err


async def test_files_of_this_machine_are_sent(run: Shell, tmp_path: Path) -> None:
    folder = python_model(tmp_path / "mine", "sent")
    done = await run("register", folder, "--upload", "--json")
    assert (done.status, done.json["version"]["name"]) == (0, "models/sent/versions/1")
    assert done.json["version"]["source"].startswith("upload://")
    done = await run("register", tmp_path / "nothing", "--upload")
    assert done.status == 2


async def test_a_failed_import_says_why(run: Shell, tmp_path: Path) -> None:
    done = await run("register", f"file://{tmp_path}/nix")
    assert (done.status, done.out) == (1, "")
    assert "nix was not registered: there is nothing at" in done.err
    done = await run("register", "ftp://somewhere/nix")
    assert (done.status, done.out) == (1, "")
    assert "files come by https://" in done.err


async def test_a_repository_is_fetched(run: Shell, tmp_path: Path) -> None:
    for name in ("a", "b"):
        python_model(tmp_path / "more", name, (1, 2))
    (tmp_path / "more" / "docs").mkdir()
    (tmp_path / "more" / "docs" / "a.md").touch()
    done = await run("import", f"file://{tmp_path}/more")
    assert (done.status, done.out.splitlines()[0]) == (0, "imported 4, unchanged 0")
    assert "docs: not a model" in done.out
    done = await run("import", f"file://{tmp_path}/more")
    assert done.out.splitlines()[0] == "imported 0, unchanged 4"


@pytest.mark.parametrize(
    ("source", "model"),
    [
        ("s3://bucket/folder/resnet", "resnet"),
        ("s3://bucket/folder/resnet/", "resnet"),
        ("https://host/a/bert.tar.gz", "bert"),
        ("hf://owner/name@revision", "name"),
        ("oci://host/path/name:tag", "name"),
        ("mlflow://name/3", "name"),
        ("mlflow://name@champion", "name"),
        ("/srv/models/resnet", "resnet"),
        ("more/n", "n"),
    ],
)
def test_a_model_has_the_last_part_of_its_source_as_its_name(source: str, model: str) -> None:
    assert model_in(source) == model
