"""What the Router reads of a Triton's replies, and the order that it keeps them in."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from services.router.core.wire.reply import (
    PendingRequests,
    ReplyOrder,
    StreamReply,
    amended,
    as_stream_reply,
    failure,
    is_only_reply,
    parse_reply,
    refusal,
    split,
)
from shoal.protobuf import Malformed

words = st.text(st.characters(codec="utf-8"), max_size=200)


def parsed(message: bytes) -> Any:
    return service_pb2.ModelStreamInferResponse.FromString(message)


@st.composite
def replies(draw: st.DrawFn) -> Any:
    """As Triton makes them, and with more in them."""
    message = service_pb2.ModelStreamInferResponse(error_message=draw(st.just("") | words))
    inside = message.infer_response
    inside.SetInParent()
    inside.id = draw(words)
    inside.model_name = draw(words)
    inside.model_version = draw(st.sampled_from(["", "1", "12", "01", "012"]))
    inside.parameters["other"].string_param = draw(words)
    if (final := draw(st.none() | st.booleans())) is not None:
        inside.parameters["triton_final_response"].bool_param = final
    if draw(st.booleans()):
        inside.outputs.add(name="OUTPUT", datatype="FP32", shape=[draw(st.integers(0, 300))])
        inside.raw_output_contents.append(draw(st.binary(max_size=300)))
    return message


def said(message: Any) -> StreamReply:
    inside = message.infer_response
    final = None
    if "triton_final_response" in inside.parameters:
        final = inside.parameters["triton_final_response"].bool_param
    bare = final is True and not message.error_message and inside.model_version.startswith("0")
    return StreamReply(message.error_message, inside.id, final, bare)


@given(replies())
def test_a_reply_is_read_as_protobuf_reads_it(message: Any) -> None:
    wire = message.SerializeToString(deterministic=True)
    assert parse_reply(wire) == said(message)
    error, inside = split(wire)
    assert error == message.error_message
    assert service_pb2.ModelInferResponse.FromString(inside) == message.infer_response


@given(replies())
def test_an_only_reply_is_seen_at_a_glance_unless_names_are_long(message: Any) -> None:
    read, seen = said(message), is_only_reply(message.SerializeToString(deterministic=True))
    if read.error or read.final is not True:
        assert not seen
    inside = message.infer_response
    if not seen and not read.error and read.final:
        before = (inside.model_name, inside.id, inside.parameters["other"].string_param)
        assert sum(len(word.encode()) for word in before) > 400


def test_an_answer_to_a_plain_model_is_seen_at_a_glance() -> None:
    assert is_only_reply(as_stream_reply(b"\x0a\x01m"))
    assert not is_only_reply(failure("7", "it failed", "m", "1"))
    assert not is_only_reply(refusal("7", "no"))
    assert not is_only_reply(b"")


@given(replies(), st.none() | words, st.none() | words)
def test_a_name_is_put_right_and_nothing_else(
    message: Any, model: str | None, version: str | None
) -> None:
    got = parsed(amended(message.SerializeToString(), model, version))
    if model is not None:
        message.infer_response.model_name = model
    if version is not None:
        message.infer_response.model_version = version
    assert got == message


@given(words, words.filter(bool))
def test_a_refusal_is_made_as_triton_makes_it(id_: str, text: str) -> None:
    want = service_pb2.ModelStreamInferResponse(error_message=text)
    want.infer_response.id = id_
    assert refusal(id_, text) == want.SerializeToString()
    assert parse_reply(refusal(id_, text)) == StreamReply(text, id_, None, False)


@given(replies())
def test_an_answer_becomes_the_only_reply(message: Any) -> None:
    alone = message.infer_response
    got = parsed(as_stream_reply(alone.SerializeToString()))
    alone.parameters["triton_final_response"].bool_param = True
    assert got == service_pb2.ModelStreamInferResponse(infer_response=alone)


@given(words, words.filter(bool), words, st.sampled_from(["", "1"]))
def test_a_failure_is_made_as_triton_makes_it(
    id_: str, text: str, model: str, version: str
) -> None:
    want = service_pb2.ModelStreamInferResponse(error_message=text)
    want.infer_response.id = id_
    want.infer_response.model_name = model
    want.infer_response.model_version = version
    want.infer_response.parameters["triton_final_response"].bool_param = True
    assert parsed(failure(id_, text, model, version)) == want
    assert parse_reply(failure(id_, text, model, version)) == StreamReply(text, id_, True, False)


@pytest.mark.parametrize(
    "message", [b"\x12", b"\x12\x05abc", b"\x1a\x00", b"\x0a\x80", b"\x12\xff\xff\xff\xff\xff\x01"]
)
def test_what_is_no_reply_is_refused(message: bytes) -> None:
    with pytest.raises(Malformed):
        parse_reply(message)


# --- which request a reply answers ----------------------------------------------------------------


def test_ids_tell_requests_apart_and_the_order_those_that_share_one() -> None:
    pending: PendingRequests[int] = PendingRequests()
    for number, id_ in enumerate(["a", "", "a", "b"]):
        pending.add(id_, number)
    assert [pending.count(id_) for id_ in ("a", "", "b", "c")] == [2, 1, 1, 0]
    assert (len(pending), sorted(pending)) == (4, [0, 1, 2, 3])
    order = []
    for id_ in ("b", "a", "", "a"):
        item = pending.oldest(id_)
        assert item is not None
        order.append(item)
        pending.end(id_)
    assert order == [3, 0, 1, 2]
    assert (len(pending), pending.oldest("a")) == (0, None)


def test_what_is_cleared_is_under_way_no_more() -> None:
    pending: PendingRequests[int] = PendingRequests()
    pending.add("a", 7)
    pending.clear()
    assert (len(pending), [*pending], pending.oldest("a")) == (0, [], None)


# --- in whose turn it goes out --------------------------------------------------------------------


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_answers_go_out_in_the_order_of_their_requests(
    answered: list[int], leaving: set[int]
) -> None:
    turns: ReplyOrder[int] = ReplyOrder()
    for item in range(6):
        turns.join(item)
    out: list[bytes] = []
    for item in answered:
        if item in leaving:
            out += turns.leave(item)
        else:
            out += turns.answer(item, b"%d" % item)
    stayed = [b"%d" % item for item in range(6) if item not in leaving]
    assert out == stayed


@given(st.permutations(range(4)))
def test_one_that_leaves_with_its_answer_takes_it_along(answered: list[int]) -> None:
    turns: ReplyOrder[int] = ReplyOrder()
    for item in range(4):
        turns.join(item)
    out = [message for item in answered[:-1] for message in turns.answer(item, b"%d" % item)]
    held = [item for item in answered[:-1] if b"%d" % item not in out]
    out += itertools.chain.from_iterable(turns.leave(item) for item in held)
    out += turns.leave(answered[-1])
    assert sorted(out) == sorted(b"%d" % item for item in answered[:-1])
