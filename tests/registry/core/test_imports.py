"""The life of an import."""

from dataclasses import replace

import pytest

from services.registry.core.imports import ENDED, IMPORT_MOVES, Import, ImportState
from services.registry.core.source import Source

ONE = Import(id="1", model="m", source=Source("s3", "bucket/m"), started_us=5)


def test_every_state_is_in_the_table_and_the_last_ones_end() -> None:
    assert IMPORT_MOVES.keys() == set(ImportState)
    assert {state for state, following in IMPORT_MOVES.items() if not following} == ENDED


def test_an_import_moves_and_ends_once() -> None:
    validating = ONE.moved(ImportState.VALIDATING, 6)
    assert (validating.ended_us, validating.has_ended) == (0, False)
    assert validating.moved(ImportState.IMPORTING, 7).state is ImportState.IMPORTING
    failed = validating.moved(ImportState.FAILED, 8, "it is late")
    assert (failed.ended_us, failed.reason, failed.has_ended) == (8, "it is late", True)
    assert failed.moved(ImportState.FAILED, 9) is failed
    with pytest.raises(AssertionError):
        failed.moved(ImportState.IMPORTING, 9)


def test_it_names_what_it_has_registered() -> None:
    assert ONE.version == ""
    assert replace(ONE, registered=3).version == "models/m/versions/3"
    assert ONE.name == "imports/1"
