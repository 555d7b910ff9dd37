"""What the Router reads of a request, against what protobuf reads of the same bytes."""

from typing import Any, NoReturn

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from services.router.core.wire import request as wire
from services.router.core.wire.request import (
    Head,
    Sequence,
    asks_for_final_reply,
    head,
    overridden,
    overridden_in_stream,
    probe,
)
from shoal.protobuf import NUMBER_BYTES, Malformed
from tests.fuzz import oracle

VARINT, FIXED64, BYTES, OPEN, CLOSE, FIXED32 = range(6)
LARGEST_FIELD = 2**29 - 1
KNOWN_FIELDS = range(1, 8)

A = b"\x0a\x01A"  # model_name: "A"


def varint(number: int, length: int = 0) -> bytes:
    """`length`: bytes at least; more than it takes is an encoding that parsers accept too."""
    out = bytearray()
    while number > 0x7F or len(out) < length - 1:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, kind: int, content: bytes, tag_length: int = 0) -> bytes:
    return varint(number << 3 | kind, tag_length) + content


def text(number: int, data: bytes, tag_length: int = 0, size_length: int = 0) -> bytes:
    return field(number, BYTES, varint(len(data), size_length) + data, tag_length)


def protobuf(message: bytes) -> Any:
    """None where protobuf refuses the bytes."""
    try:
        return service_pb2.ModelInferRequest.FromString(message)
    except DecodeError:
        return None


def read(message: bytes) -> Head | None:
    """None where the walk refuses the bytes."""
    try:
        return head(message)
    except Malformed:
        return None


def head_of(parsed: Any) -> Head:
    parameters = {name: parsed.parameters[name] for name in parsed.parameters}
    sequence, priority = oracle.sequence(parameters), oracle.priority(parameters)
    classes = oracle.asks_for_classes(parsed)
    return Head(parsed.model_name, parsed.model_version, parsed.id, sequence, priority, classes)


# --- messages -------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["m", "densenet_onnx"])
parameters = st.builds(
    service_pb2.InferParameter,
    int64_param=st.integers(-(2**63), 2**63 - 1),
) | st.builds(service_pb2.InferParameter, string_param=words)
tensors = st.builds(
    service_pb2.ModelInferRequest.InferInputTensor,
    name=words,
    datatype=words,
    shape=st.lists(st.integers(0, 2**12), max_size=3),
    parameters=st.dictionaries(words, parameters, max_size=1),
)
requests = st.builds(
    service_pb2.ModelInferRequest,
    model_name=words,
    model_version=words,
    id=words,
    parameters=st.dictionaries(words, parameters, max_size=2),
    inputs=st.lists(tensors, max_size=2),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=2),
)

lengths = st.integers(0, 5)
scalars = st.builds(
    text, st.sampled_from([1, 2, 3]), words.map(str.encode), tag_length=lengths, size_length=lengths
)
# Fields that ModelInferRequest has not, and those that it has with another wire type.
unknown_numbers = st.integers(8, 40) | st.integers(8, LARGEST_FIELD)
contents = {
    VARINT: st.integers(0, 2**64 - 1).map(varint),
    FIXED64: st.binary(min_size=8, max_size=8),
    FIXED32: st.binary(min_size=4, max_size=4),
}
strangers = st.one_of(
    st.builds(text, unknown_numbers, st.binary(max_size=200), lengths, lengths),
    *(
        st.builds(field, unknown_numbers | st.sampled_from(KNOWN_FIELDS), st.just(kind), content)
        for kind, content in contents.items()
    ),
)
pieces = scalars | strangers | requests.map(lambda request: request.SerializeToString())
sound = st.lists(pieces, max_size=6).map(b"".join)

groups = st.builds(
    lambda number, inside: field(number, OPEN, inside) + field(number, CLOSE, b""),
    unknown_numbers,
    scalars,
)
odd = st.one_of(
    groups,
    st.builds(text, st.sampled_from([1, 2, 3]), st.binary(max_size=4)),  # hardly ever UTF-8
    st.builds(field, st.integers(0, 2**33), st.integers(0, 7), st.binary(max_size=4)),
    st.builds(text, st.sampled_from([1, 2, 3]), words.map(str.encode), st.just(6)),
    st.builds(text, st.sampled_from([1, 2, 3]), words.map(str.encode), st.just(1), st.just(6)),
    st.binary(max_size=12),
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Sound pieces and odd ones in any order, some of it cut off or overwritten."""
    message = bytearray(b"".join(draw(st.lists(pieces | odd, max_size=6))))
    if message and draw(st.booleans()):
        message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    return bytes(message[: draw(st.integers(0, len(message)))] if draw(st.booleans()) else message)


names = st.none() | words
versions = st.none() | st.integers(1, 2**63 - 1)


# --- the walk -------------------------------------------------------------------------------------


@given(requests)
def test_a_request_as_clients_make_it(request: Any) -> None:
    assert head(request.SerializeToString()) == head_of(request)


@given(sound)
def test_fields_repeated_unknown_and_in_any_order(message: bytes) -> None:
    assert head(message) == head_of(service_pb2.ModelInferRequest.FromString(message))


@settings(max_examples=400)
@given(spoilt())
def test_any_bytes_are_refused_or_read_as_protobuf_reads_them(message: bytes) -> None:
    found, parsed = read(message), protobuf(message)
    if found is not None and parsed is not None:
        assert found == head_of(parsed)


@settings(max_examples=200)
@given(requests, st.data())
def test_a_request_cut_off_is_refused_or_ends_at_a_field(request: Any, data: st.DataObject) -> None:
    whole = request.SerializeToString()
    message = whole[: data.draw(st.integers(0, len(whole)))]
    parsed = protobuf(message)
    assert read(message) == (None if parsed is None else head_of(parsed))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(A + b"\x8a\x80\x80\x80\x10\x01B", id="a tag beyond 32 bits"),
        pytest.param(A + text(1, b"B", tag_length=6), id="a tag of six bytes"),
        pytest.param(A + b"\x0a\x81\x80\x80\x80\x10B", id="a size beyond 32 bits"),
        pytest.param(A + b"\x02\x01B", id="field number 0"),
        pytest.param(A + b"\x82\x00\x01B", id="field number 0 in two bytes"),
        pytest.param(A + b"\x00", id="a zero byte"),
        pytest.param(A + b"\x0e\x01B", id="wire type 6"),
        pytest.param(A + b"\x44", id="the end of no group"),
        pytest.param(A + b"\x43", id="a group without an end"),
        pytest.param(A + b"\x0a", id="no size"),
        pytest.param(A + b"\x0a\x80", id="half a size"),
        pytest.param(A + b"\x8a", id="half a tag"),
        pytest.param(A + b"\x0a\x02B", id="too few bytes"),
        pytest.param(A + b"\x09" + bytes(7), id="seven bytes of eight"),
        pytest.param(A + b"\x0d" + bytes(3), id="three bytes of four"),
        pytest.param(A + b"\x40" + b"\xff" * 10 + b"\x01", id="eleven bytes of a number"),
        pytest.param(b"\x0a\x01\xff", id="a name that is not UTF-8"),
        pytest.param(b"\x0a\x03\xed\xa0\x80", id="a lone surrogate"),
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    """A C++ parser takes the first of these for a second name: Triton would answer for B."""
    with pytest.raises(Malformed):
        head(message)
    assert protobuf(message) is None


def test_a_size_of_six_bytes_is_refused_as_c_plus_plus_does() -> None:
    with pytest.raises(Malformed, match="more than 5 bytes"):
        head(A + text(1, b"B", size_length=6))


def test_groups_are_refused_though_protobuf_skips_them() -> None:
    message = A + field(8, OPEN, text(1, b"B")) + field(8, CLOSE, b"")
    assert head_of(protobuf(message)).model == "A"
    with pytest.raises(Malformed, match="wire type 3"):
        head(message)


def shaped(*shape: int) -> bytes:
    request = service_pb2.ModelInferRequest(model_name="m")
    request.inputs.add(name="INPUT", datatype="FP32", shape=shape)
    return request.SerializeToString()


@pytest.mark.parametrize(
    "shape",
    [
        (2**62,),  # these are what Triton 24.10 hands on to a model's process, which dies of them
        (2**32, 2**32),
        (2**31, 2**31),
        (2**62, 4, 2),
        (2**62 + 2,),
        (256,) * 8,
        (-2, -4),
        (0, 2**63 - 1, 2**63 - 1),
        (2**63 - 1, 0),
        (2**62, 4, 0),
        (0, -1),
        (1,) * 65,
    ],
)
def test_a_shape_whose_elements_cannot_be_counted_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(Malformed, match="an input"):
        head(shaped(*shape))


@pytest.mark.parametrize("shape", [(), (0,), (0, 2**40), (-1,), (-1, 3), (2**48,), (1,) * 64])
def test_other_shapes_are_left_to_triton(shape: tuple[int, ...]) -> None:
    assert head(shaped(*shape)).model == "m"


def test_an_empty_message_names_nothing() -> None:
    assert head(b"") == Head("", "", "")


# --- what is remembered of earlier requests -------------------------------------------------------


raws = st.lists(st.binary(max_size=300).map(lambda data: text(7, data)), max_size=3).map(b"".join)


@settings(max_examples=400)
@given(requests, raws, raws, pieces | odd | st.just(b""), st.data())
def test_one_request_is_not_taken_for_another(
    request: Any, earlier: bytes, later: bytes, further: bytes, data: st.DataObject
) -> None:
    """They begin alike, and the other one has more, less, or other fields after its tensors."""
    same = request.SerializeToString()
    read(same + earlier)
    message = same + later + further
    message = message[: data.draw(st.integers(len(same), len(message)))]
    assert not oracle.disagreement(message)


def test_a_preamble_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    request = service_pb2.ModelInferRequest(model_name="preamble", id="7")
    request.inputs.add(name="A", datatype="FP32", shape=[1])
    request.inputs.add(name="B", datatype="BYTES", shape=[1])
    request.raw_input_contents.extend([b"1234", b"short"])
    found = head(request.SerializeToString())

    def walk(message: bytes) -> NoReturn:
        raise AssertionError("walked again")

    monkeypatch.setattr(wire, "_walk", walk)
    request.raw_input_contents[0] = b"5678"
    request.raw_input_contents[1] = b"long" * 100_000
    assert head(request.SerializeToString()) is found
    request.id = "8"
    with pytest.raises(AssertionError, match="walked again"):
        head(request.SerializeToString())


@pytest.mark.parametrize("contents", [(), (b"",), (b"1234",), (b"1" * 1000,), (b"1", b"23")])
def test_a_request_of_the_same_size_may_be_another(contents: tuple[bytes, ...]) -> None:
    request = service_pb2.ModelInferRequest(model_name="same size", id="7")
    request.inputs.add(name="A", datatype="FP32", shape=[1])
    request.raw_input_contents.extend(contents)
    message = request.SerializeToString()
    read(message)
    read(message)
    for position in range(len(message)):
        for change in (1, 8, 128):
            other = bytearray(message)
            other[position] ^= change
            assert not oracle.disagreement(bytes(other))
            read(message)


def test_what_is_remembered_is_bounded() -> None:
    for number in range(2 * wire.MOST_PREAMBLES):
        head(text(1, str(number).encode()))
    assert len(wire.preambles) <= wire.MOST_PREAMBLES
    head(text(1, b"long") + text(3, b"x" * wire.LONGEST_PREAMBLE))
    longest = max(len(known.start) for known in wire.preambles.values())
    assert longest <= wire.LONGEST_PREAMBLE + NUMBER_BYTES + 1


# --- overriding -----------------------------------------------------------------------------------


@settings(max_examples=200)
@given(sound, names, versions)
@example(b"", "x" * 300, 7)
def test_an_override_changes_that_and_nothing_else(
    message: bytes, model: str | None, version: int | None
) -> None:
    want = service_pb2.ModelInferRequest.FromString(message)
    if model is not None:
        want.model_name = model
    if version is not None:
        want.model_version = str(version)
    changed = overridden(message, model, version)
    got = service_pb2.ModelInferRequest.FromString(changed)
    assert got.SerializeToString(deterministic=True) == want.SerializeToString(deterministic=True)
    assert head(changed) == head_of(want)


@settings(max_examples=400)
@given(spoilt(), names, versions)
def test_what_the_walk_accepts_cannot_escape_its_override(
    message: bytes, model: str | None, version: int | None
) -> None:
    """Bytes that the walk takes and protobuf refuses (rubbish inside a tensor, say) stay refused
    with the override behind them; they don't turn into a request for something else."""
    found = read(message)
    if found is None:
        return
    parsed = protobuf(overridden(message, model, version))
    if protobuf(message) is None:
        assert parsed is None
        return
    assert parsed.model_name == (found.model if model is None else model)
    assert parsed.model_version == (found.version if version is None else str(version))
    assert parsed.id == found.id


@given(
    st.builds(
        service_pb2.ModelInferResponse,
        model_name=words,
        model_version=words,
        id=words,
        raw_output_contents=st.lists(st.binary(max_size=200), max_size=2),
    ),
    words,
)
def test_the_name_is_restored_in_a_response(response: Any, model: str) -> None:
    got = service_pb2.ModelInferResponse.FromString(
        overridden(response.SerializeToString(), model, None)
    )
    response.model_name = model
    assert got == response


def test_an_override_does_not_complete_a_message_that_was_cut() -> None:
    cut = A + b"\x42\x03"  # field 8, and none of its three bytes
    completed = protobuf(overridden(cut, None, 7))
    assert completed.model_version == "", "protobuf takes the override for the missing bytes"
    with pytest.raises(Malformed, match="middle of a field"):
        head(cut)


# --- sequences ------------------------------------------------------------------------------------


def choice(value: int | str | bool, *, unsigned: bool = False) -> Any:
    if isinstance(value, bool):
        return service_pb2.InferParameter(bool_param=value)
    if isinstance(value, str):
        return service_pb2.InferParameter(string_param=value)
    if unsigned:
        return service_pb2.InferParameter(uint64_param=value)
    return service_pb2.InferParameter(int64_param=value)


@given(
    st.integers(0, 2**63 - 1) | st.text(st.characters(codec="utf-8"), max_size=8),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_sequence_is_read(
    id_: int | str, unsigned: bool, start: bool, end: bool, first: bool
) -> None:
    request = service_pb2.ModelInferRequest(model_name="m", id="sequence_id")
    request.parameters["sequence_start"].CopyFrom(choice(start))
    request.parameters["sequence_end"].CopyFrom(choice(end))
    request.parameters["priority"].CopyFrom(choice(7, unsigned=True))
    request.parameters["ratio"].double_param = 0.5
    named = service_pb2.ModelInferRequest()
    named.parameters["sequence_id"].CopyFrom(choice(id_, unsigned=unsigned))
    parts = [request.SerializeToString(), named.SerializeToString()]
    found = head(b"".join(parts if first else reversed(parts)))
    assert found.model == "m"
    assert found.sequence == (Sequence(id_, start, end) if id_ else None)


def test_the_last_word_on_a_sequence_counts() -> None:
    message = b""
    for id_ in (1, "two", 3):
        request = service_pb2.ModelInferRequest()
        request.parameters["sequence_id"].CopyFrom(choice(id_))
        message += request.SerializeToString()
    assert head(message).sequence == Sequence(3, False, False)


@pytest.mark.parametrize("cut", [b"\x0a\x7fsequence_id", b"\x0asequence_", b"sequence_\x80\x80"])
def test_a_parameter_that_breaks_off_is_refused(cut: bytes) -> None:
    with pytest.raises(Malformed):
        head(text(4, cut))


# --- streams --------------------------------------------------------------------------------------

FINALS = "triton_enable_empty_final_response"


@given(requests, st.lists(st.booleans() | st.integers(0, 3) | words, max_size=3), st.booleans())
def test_whether_empty_finals_are_asked_for(request: Any, said: list[Any], apart: bool) -> None:
    request.parameters.pop(FINALS, None)
    if apart:
        request.raw_input_contents.append(FINALS.encode())
    message = request.SerializeToString()
    for value in said:
        part = service_pb2.ModelInferRequest()
        part.parameters[FINALS].CopyFrom(choice(value))
        message += part.SerializeToString()
    last = said[-1] if said else False
    assert asks_for_final_reply(message) == (last if isinstance(last, bool) else None)


def test_a_choice_that_is_not_made_is_none() -> None:
    request = service_pb2.ModelInferRequest()
    request.parameters[FINALS].SetInParent()
    assert asks_for_final_reply(request.SerializeToString()) is None


@settings(max_examples=200)
@given(sound, st.none() | words, st.integers(1, 2**63 - 1))
def test_in_a_stream_the_end_is_asked_for_too(
    message: bytes, model: str | None, version: int
) -> None:
    want = service_pb2.ModelInferRequest.FromString(message)
    if model is not None:
        want.model_name = model
    want.model_version = f"0{version}"
    want.parameters[FINALS].bool_param = True
    changed = overridden_in_stream(message, model, version)
    got = service_pb2.ModelInferRequest.FromString(changed)
    assert got.SerializeToString(deterministic=True) == want.SerializeToString(deterministic=True)
    assert int(want.model_version) == version, "as Triton reads it"


def test_what_triton_is_to_refuse_names_the_model_and_no_sequence() -> None:
    request = service_pb2.ModelInferRequest.FromString(probe("m", 7))
    assert (request.model_name, request.model_version) == ("m", "7")
    assert request.parameters["sequence_id"].WhichOneof("parameter_choice") == "bool_param"
    assert len(request.inputs) == 0
