"""Which sources' code may run, and what is said of the others."""

import pytest

from services.registry.core.permission import SAFER, refusal

RUNS = ["a pickle is a program"]


def test_what_runs_nothing_is_always_allowed() -> None:
    assert refusal("onnx", [], "https", ()) == ""


@pytest.mark.parametrize("scheme", ["file", "https", "hf"])
def test_sources_that_are_allowed(scheme: str) -> None:
    assert refusal("sklearn-pickle", RUNS, scheme, (scheme,)) == ""


@pytest.mark.parametrize("scheme", ["upload", "https", "s3", "gs", "az", "hf", "oci", "mlflow"])
def test_only_this_hosts_folders_by_default(scheme: str) -> None:
    said = refusal("sklearn-pickle", RUNS, scheme, ("file",))
    assert said.startswith("opening it runs code that came with it: a pickle is a program.")
    assert "save it with skops" in said
    assert f"allow code from '{scheme}' in SHOAL_REGISTRY_CODE_SOURCES" in said


def test_the_hosts_folders_can_be_closed_too() -> None:
    assert "a folder of this host" in refusal("python", ["model.py is Python code"], "file", ())


@pytest.mark.parametrize("name", [*SAFER, "mine"])
def test_every_format_is_told_what_would_be_safe(name: str) -> None:
    assert "Either " in refusal(name, RUNS, "https", ())
