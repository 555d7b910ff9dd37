"""One stack for all tests that only use it: two places too few for the example models."""

from collections.abc import Iterator

import pytest

from services.embedded.background import BackgroundStack
from tests.support.stack import EXAMPLES, Fleet, fleet


@pytest.fixture(scope="session")
def stack() -> Iterator[Fleet]:
    """The whole suite on free ports: one Triton, the example models, room for three at a time."""
    with BackgroundStack(
        f"--repository={EXAMPLES}",
        "--max-models=3",
        "--trace-ratio=0",
        environment={"OTEL_BSP_SCHEDULE_DELAY": "100"},
    ) as running:
        yield fleet(running)
