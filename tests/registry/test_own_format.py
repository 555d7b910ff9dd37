"""The format of one's own in docs/formats.md, behind an entry point of a package of its own."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.registry.formats import known
from services.registry.formats.inspection import inspect
from services.registry.formats.refusal import Refusal
from tests.support.client_docs import blocks

PAGE = "docs/formats.md"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install the package of the page, and return an empty folder."""
    packages = tmp_path / "packages"
    metadata = packages / "matrix_format-1.0.dist-info"
    metadata.mkdir(parents=True)
    (code,) = blocks("own format", PAGE)
    (entry,) = blocks("own entry point", PAGE)
    points = tomllib.loads(entry)["project"]["entry-points"]
    lines = [f"[{g}]\n{name} = {value}" for g in points for name, value in points[g].items()]
    (packages / "matrix_format.py").write_text(code)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: matrix-format\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(packages)
    known.formats.cache_clear()
    folder = tmp_path / "model"
    folder.mkdir()
    yield folder
    known.formats.cache_clear()
    sys.modules.pop("matrix_format", None)


def test_it_is_found_before_those_of_shoal(installed: Path) -> None:
    assert [one.name for one in known.formats()] == ["matrix", *known.ORDER]


def test_it_says_what_a_model_takes(installed: Path) -> None:
    np.save(installed / "matrix.npy", np.ones((4, 3), np.float32))
    found = inspect(installed)
    assert found.format == "matrix"
    assert [one.shape for one in (*found.described.inputs, *found.described.outputs)] == [
        (-1, 4),
        (-1, 3),
    ]
    assert found.must_convert


def test_it_refuses_with_a_sentence_of_its_own(installed: Path) -> None:
    np.save(installed / "matrix.npy", np.ones((4, 3)))
    with pytest.raises(Refusal, match=r"matrix\.npy is not a matrix of 32-bit floats"):
        inspect(installed)
