"""Artifacts with bytes changed, cut out or put in: only Unservable ever comes out."""

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.registry.formats import known
from services.registry.formats.artifact import open_artifact
from services.registry.formats.config import parse_config
from services.registry.formats.inspection import inspect
from services.registry.formats.refusal import Refusal, Unservable
from tests.registry.test_formats import BUILT, ONE_OF_EACH

EDGES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 8, b"\0" * 8, b"-1", b"9" * 30, b"[" * 99]


def mutated(data: bytes, draw: st.DataObject) -> bytes:
    content = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(content)))
        gone = draw.draw(st.integers(0, 8))
        new = draw.draw(st.one_of(st.binary(max_size=8), st.sampled_from(EDGES)))
        content[at : at + gone] = new
    return bytes(content)


@pytest.mark.parametrize("index", range(len(ONE_OF_EACH)), ids=lambda i: ONE_OF_EACH[i][0])
@settings(suppress_health_check=list(HealthCheck))
@given(draw=st.data())
def test_only_a_reason_comes_out(index: int, draw: st.DataObject) -> None:
    name, build = ONE_OF_EACH[index]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        path = draw.draw(st.sampled_from(paths))
        path.write_bytes(mutated(path.read_bytes(), draw))
        with suppress(Unservable):
            inspect(folder)
        # The format itself, too, where the change hides it from detection.
        artifact = open_artifact(folder)
        if known.named(name).detect(artifact):
            with suppress(Refusal):
                known.named(name).validate(artifact)


@pytest.mark.parametrize(
    "text", [b"max_batch_size: 99999999999999999999999999", b"\xff\xfe { a: 1 }", b"a\x80: 1"]
)
def test_only_a_reason_comes_out_of_a_config(text: bytes) -> None:
    with pytest.raises(Unservable, match=r"config\.pbtxt: "):
        parse_config(text)


def test_all_formats_are_mutated() -> None:
    assert {name for name, _ in ONE_OF_EACH} == set(BUILT)
