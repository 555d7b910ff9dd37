"""Two Tritons with the models that the scripted Controller knows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.controllers import MODELS
from tests.support.triton_direct import DirectTriton, two_servers
from tests.support.triton_models import write


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for model in MODELS:
        write(folder, model)
    return folder


@pytest.fixture
def servers(models: Path, tmp_path: Path) -> Iterator[dict[str, DirectTriton]]:
    """For a test that harms them."""
    with two_servers(tmp_path, models, MODELS) as found:
        yield found


@pytest.fixture(scope="module")
def lasting(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, DirectTriton]]:
    with two_servers(tmp_path_factory.mktemp("lasting"), models, MODELS) as found:
        yield found
