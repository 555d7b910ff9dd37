"""What the repository's own tooling promises: hooks that are CI's checks, pins, release notes."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]

CHANGELOG = """\
# Changelog

## Unreleased

- Not yet.

## [1.2.0] - 2026-02-01

### Added

- One thing ([docs/one.md](docs/one.md)), which takes
  two lines.
  - A part of it.
- Another ([elsewhere](https://example.org)).

## 1.1.0 - 2026-01-31

## 1.1.0rc1

- A candidate.
"""


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_notes", ROOT / ".ci/release_notes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hooks_are_what_ci_checks() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"^ +entry: (.+)$", hooks, re.MULTILINE)
    assert entries == ["make lint", ".ci/run private"]
    script = (ROOT / ".ci/run").read_text()
    (checks,) = re.findall(r"^checks\(\) \{\n(.*?)^\}", script, re.MULTILINE | re.DOTALL)
    assert "; make lint\n" in checks
    assert "; nothing_private\n" in checks
    assert "    private) nothing_private ;;\n" in script


@pytest.mark.parametrize("path", ["constraints.txt", "deploy/triton/constraints.txt"])
def test_constraints_are_plain_pins(path: str) -> None:
    for line in (ROOT / path).read_text().splitlines():
        assert re.fullmatch(r"(?:[A-Za-z0-9._-]+==[A-Za-z0-9.]+ *)?(?:#.*)?", line), line


def test_the_notes_of_a_release(release: ModuleType) -> None:
    assert release.notes("v1.2.0", "1.2.0", CHANGELOG, "https://example.org/pages") == (
        "### Added\n\n"
        "- One thing ([docs/one.md](https://example.org/pages/docs/one.md)), which takes two lines."
        "\n  - A part of it.\n"
        "- Another ([elsewhere](https://example.org)).\n"
    )
    assert release.notes("v1.1.0rc1", "1.1.0rc1", CHANGELOG) == "- A candidate.\n"


@pytest.mark.parametrize(
    ("tag", "version", "told"),
    [
        ("v1.2.1", "1.2.0", r"the tag is v1\.2\.1, and pyproject\.toml has version 1\.2\.0"),
        ("v1.3.0", "1.3.0", r"no heading `## 1\.3\.0`"),
        ("v1.1.0", "1.1.0", r"nothing below `## 1\.1\.0`"),
        ("v1.2", "1.2", r"no heading `## 1\.2`"),
    ],
)
def test_what_cannot_be_released(release: ModuleType, tag: str, version: str, told: str) -> None:
    with pytest.raises(release.NoNotes, match=told):
        release.notes(tag, version, CHANGELOG)
