"""For any bytes the walk reads what protobuf reads, or refuses; and hostile ones cost little."""

import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.router.core.wire import request as wire
from services.router.core.wire.request import Sequence, head
from shoal.protobuf import Malformed
from tests.fuzz import oracle, seeds
from tests.router.core.test_wire import FIXED32, FIXED64, OPEN, VARINT, field, text, varint

ROOT = Path(__file__).resolve().parents[3]

# --- messages -------------------------------------------------------------------------------------

keys = st.sampled_from(
    [b"sequence_id", b"sequence_start", b"sequence_end", b"sequence_", b"priority", b"note"]
)
numbers = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**63])
varints = st.builds(varint, numbers, st.integers(0, 10)) | st.just(b"\xff" * 9 + b"\x7f")
choices = st.one_of(
    st.builds(field, st.sampled_from([1, 2, 5, 6]), st.just(VARINT), varints),
    st.builds(text, st.sampled_from([3, 6]), st.sampled_from([b"", b"s", b"sequence_", b"\xff"])),
    st.builds(field, st.sampled_from([4, 6]), st.just(FIXED64), st.just(bytes(8))),
    st.builds(field, st.sampled_from([1, 4]), st.just(FIXED32), st.just(bytes(4))),
)
values = st.lists(choices, max_size=3).map(b"".join)
entry_parts = st.one_of(
    keys.map(lambda key: text(1, key)),
    values.map(lambda value: text(2, value)),
    st.builds(text, st.just(3), st.just(b"sequence_")),
    st.builds(field, st.integers(1, 3), st.sampled_from([VARINT, OPEN]), varints),
)
entries = st.builds(
    lambda key, value, more, first: b"".join([*([more] if first else []), key, value, more]),
    keys.map(lambda key: text(1, key)),
    values.map(lambda value: text(2, value)),
    st.just(b"") | entry_parts,
    st.booleans(),
)
names = st.sampled_from([b"", b"A", b"multiplier", b"\xff", b"\xc3\xa9"])
sizes = st.integers(-2, 8) | st.sampled_from(
    [2**24, 2**31, 2**47, 2**48, 2**62, 2**63 - 1, -(2**63)]
)
shapes = st.one_of(
    st.lists(sizes, max_size=4).map(
        lambda shape: text(3, b"".join(varint(size % 2**64) for size in shape))
    ),
    sizes.map(lambda size: field(3, VARINT, varint(size % 2**64))),
    st.builds(text, st.just(3), st.binary(max_size=4)),
    st.builds(field, st.just(3), st.sampled_from([FIXED64, OPEN]), st.just(bytes(8))),
    st.builds(text, st.sampled_from([1, 2, 4, 5]), st.binary(max_size=6)),
)
inputs = st.lists(shapes, max_size=4).map(lambda fields: text(5, b"".join(fields)))
parts = st.one_of(
    inputs,
    entries.map(lambda entry: text(4, entry)),
    st.builds(text, st.sampled_from([1, 2, 3]), names, st.integers(0, 6), st.integers(0, 6)),
    st.builds(text, st.integers(4, 9), st.binary(max_size=8)),
    st.builds(field, st.integers(0, 9), st.integers(0, 7), varints),
    st.sampled_from([b"\x43\x44", b"\x43\x0a\x01B\x44", b"\x0b\x0c"]),
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Parts in any order, now and then cut off or with a byte overwritten."""
    message = bytearray(b"".join(draw(st.lists(parts, max_size=6))))
    spoil = draw(st.integers(0, 5))
    if message and spoil == 0:
        message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    if message and spoil == 1:
        del message[draw(st.integers(0, len(message) - 1)) :]
    return bytes(message)


def seeded(test: Callable[..., None]) -> Callable[..., None]:
    for message in seeds.messages():
        test = example(message)(test)
    return test


# --- agreement ------------------------------------------------------------------------------------


@settings(max_examples=600)
@given(messages() | st.binary(max_size=24))
@seeded
def test_the_walk_reads_what_protobuf_reads_or_refuses(message: bytes) -> None:
    assert oracle.disagreement(message) == ""


@pytest.mark.soak
@settings(max_examples=200_000)
@given(messages() | st.binary(max_size=40))
def test_the_walk_reads_what_protobuf_reads_or_refuses_for_long(message: bytes) -> None:
    assert oracle.disagreement(message) == ""


@pytest.mark.parametrize("listed", oracle.STRICTER)
def test_what_the_walk_alone_refuses(listed: str) -> None:
    messages = {
        "wire type 3": b"\x43\x44",
        "a number of more than 5 bytes": text(1, b"A", size_length=6),
        "a parameter with other fields": text(4, text(1, b"sequence_id") + text(3, b"")),
        "more than ": text(5, b"") * 20_000,
        "a name of ": text(1, b"A" * 70_000),
        "an input of more than": text(5, text(3, varint(2**62))),
        "an input with negative": text(5, text(3, varint(2**64 - 2) * 2)),
    }
    with pytest.raises(Malformed, match=listed):
        head(messages[listed])
    assert oracle.top_level(messages[listed]) is not None, "protobuf takes it"


def parameter(key: bytes, value: bytes) -> bytes:
    return text(4, text(1, key) + text(2, value))


def number(choice: int, encoded: bytes) -> bytes:
    return field(choice, VARINT, encoded)


@pytest.mark.parametrize(
    ("value", "id_"),
    [
        pytest.param(number(2, varint(5)), 5, id="int64"),
        pytest.param(number(5, varint(5)), 5, id="uint64"),
        pytest.param(number(2, varint(2**64 - 1)), 2**64 - 1, id="a negative number"),
        pytest.param(number(2, b"\x85" + b"\x80" * 8 + b"\x7e"), 5, id="bits beyond 64"),
        pytest.param(number(2, varint(5)) + number(6, varint(6)), 5, id="an unknown choice"),
        pytest.param(number(2, varint(5)) + field(2, FIXED32, bytes(4)), 5, id="not a varint"),
        pytest.param(number(2, varint(5)) + text(3, b"five"), "five", id="the last choice"),
    ],
)
def test_a_sequence_id_is_what_protobuf_makes_of_it(value: bytes, id_: int | str) -> None:
    message = parameter(b"sequence_id", value)
    assert head(message).sequence == Sequence(id_, False, False)
    assert oracle.whole(message) == head(message)


def test_a_double_is_no_sequence_and_undoes_one() -> None:
    both = number(2, varint(5)) + field(4, FIXED64, bytes(8))
    assert head(parameter(b"sequence_id", both)).sequence is None


# --- cost -----------------------------------------------------------------------------------------


def cost(message: bytes) -> tuple[int, int]:
    """Of a walk: lines of `wire` that were run, and the most bytes that were held."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != wire.__file__:
            return None
        steps += event == "line"
        return trace

    def walk() -> None:
        try:
            head(message)
        except Malformed:
            return

    wire.preambles.clear()
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        walk()
    finally:
        sys.settrace(before)
    tracemalloc.start()
    try:
        walk()
        return steps, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


ORDINARY_STEPS = 1000
MIB = 1 << 20
LARGE = 4 * MIB


@pytest.mark.parametrize("number", range(len([*seeds.requests()])))
def test_an_ordinary_request_takes_few_steps(number: int) -> None:
    steps, held = cost([*seeds.requests()][number].SerializeToString())
    assert 10 < steps < ORDINARY_STEPS
    assert held < 16 * 1024


@pytest.mark.parametrize("length", [MIB, LARGE], ids=str)
def test_tensors_are_passed_over(length: int) -> None:
    """Nothing of their contents is looked at, whatever its size."""
    steps, held = cost(text(1, b"m") + text(7, bytes(length)) + text(5, text(5, bytes(length))))
    assert steps < ORDINARY_STEPS
    assert held < 16 * 1024


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "many empty fields": lambda size: text(5, b"") * (size // 2),
    "many numbers": lambda size: b"\x40\x00" * (size // 2),
    "many long numbers": lambda size: (b"\x40" + b"\xff" * 9 + b"\x01") * (size // 11),
    "one name again and again": lambda size: text(1, b"A" * 40) * (size // 42),
    "a large name": lambda size: text(1, b"A" * size),
    "a large id": lambda size: text(3, b"A" * size),
    "groups in groups": lambda size: b"\x43" * size,
    "messages in messages": lambda size: nested(size),
    "a size far beyond the end": lambda size: b"\x0a\xff\xff\xff\xff\x07" + bytes(size),
    "many inputs": lambda size: text(5, text(3, b"\x02\x03")) * (size // 6),
    "an input of many fields": lambda size: text(5, b"\x40\x00" * (size // 2)),
    "a shape of many dimensions": lambda size: text(5, text(3, b"\x01" * size)),
    "a shape in many fields": lambda size: text(5, b"\x18\x01" * (size // 2)),
    "a dimension without an end": lambda size: text(5, text(3, b"\xff" * size)),
    "many parameters": lambda size: parameter(b"sequence_id", b"") * (size // 17),
    "a parameter of many fields": lambda size: text(
        4, text(1, b"sequence_id") + b"\x10\x00" * (size // 2)
    ),
    "a choice of many fields": lambda size: parameter(b"sequence_id", b"\x10\x05" * (size // 2)),
    "continuation for ever": lambda size: b"\xff" * size,
}
FIELDS = 512  # instead of what the walk goes through otherwise, to count faster
MOST_STEPS = 80 * FIELDS


def nested(size: int) -> bytes:
    message = b""
    for _ in range(min(size, 2000)):
        message = text(5, message)
    return message + text(4, b"\x0a\x09sequence_" + text(2, message))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages_cost_little(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limits a message costs the same, whatever its size."""
    monkeypatch.setattr(wire, "_MAX_FIELDS", FIELDS)
    small, large = (cost(HOSTILE[name](size)) for size in (MIB, LARGE))
    assert large[0] <= small[0] + 20, "steps do not grow with the size, but for its own digits"
    assert large[0] < MOST_STEPS
    assert large[1] < 4 * MIB, "nothing large is copied"


def test_steps_grow_with_the_fields_and_no_faster() -> None:
    """Below the limits."""
    one, two, four = (cost(text(5, b"x") * count)[0] for count in (2000, 4000, 8000))
    assert four - two == 2 * (two - one)


# --- by coverage ----------------------------------------------------------------------------------


def fuzzed(seconds: int, folder: Path) -> int:
    """The messages that atheris tried in that time, without finding a disagreement."""
    pytest.importorskip("atheris", reason="there is no wheel of it for this machine")
    command = (sys.executable, "-m", "tests.fuzz.wire", f"--seconds={seconds}", f"--keep={folder}")
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    tried = re.search(r"stat::number_of_executed_units: (\d+)", ended.stderr)
    assert tried is not None, ended.stderr[-4000:]
    return int(tried[1])


def test_what_coverage_leads_to(tmp_path: Path) -> None:
    assert fuzzed(3, tmp_path) > 1000


@pytest.mark.soak
def test_what_coverage_leads_to_in_the_long_run(tmp_path: Path) -> None:
    assert fuzzed(600, tmp_path) > 1_000_000
