"""The servers with which a stack counts as ready."""

import pytest

from shoal.cli.status import usable


@pytest.mark.parametrize(
    ("states", "wanted"),
    [
        ([], False),
        (["HEALTHY"], True),
        (["HEALTHY", "DRAINING"], True),
        (["DRAINING"], False),
        (["HEALTHY", "UNREACHABLE"], False),
        (["HEALTHY", "UNUSABLE"], False),
        (["HEALTHY", "UNKNOWN"], False),
    ],
)
def test_a_drained_server_is_no_trouble_while_another_takes_models(
    states: list[str], wanted: bool
) -> None:
    assert usable([{"state": state} for state in states]) is wanted
