"""What Triton's own C++ parser makes of bytes that parsers disagree on, against the Router's walk.

The walk may refuse what Triton takes. What it takes, Triton must read alike or refuse.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from tritonclient.grpc import service_pb2

from services.router.core.wire.request import head
from shoal.protobuf import Malformed
from tests.conformance import models
from tests.fuzz import seeds
from tests.router.core.test_wire import CLOSE, FIXED32, FIXED64, OPEN, VARINT, field, text, varint
from tests.support.triton_direct import DirectTriton, triton_direct

pytestmark = pytest.mark.triton

ONE, OTHER = models.copies("told")[:2]


class Reading(NamedTuple):
    """`sequence`: the id, 0 for none."""

    model: str
    sequence: int | str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    repository = tmp_path_factory.mktemp("models")
    models.write(repository)
    with triton_direct(tmp_path_factory.mktemp("server"), repository) as running:
        running.load(ONE)
        running.load(OTHER)
        yield running


def request() -> bytes:
    made = service_pb2.ModelInferRequest(model_name=ONE)
    made.inputs.add(name="ANY", datatype="INT32", shape=[1])
    made.raw_input_contents.append(struct.pack("<i", 1))
    return bytes(made.SerializeToString())


def of_triton(server: DirectTriton, message: bytes) -> Reading | None:
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            response = service_pb2.ModelInferResponse.FromString(call(message, timeout=10))
        except grpc.RpcError as error:
            if error.code().name not in ("INTERNAL", "INVALID_ARGUMENT"):
                raise
            return None
    (content,) = response.raw_output_contents
    return Reading(response.model_name, json.loads(content[4:])["correlation"] or 0)


def of_the_walk(message: bytes) -> Reading | None:
    try:
        found = head(message)
    except Malformed:
        return None
    return Reading(found.model, found.sequence.id if found.sequence else 0)


RENAMED = text(1, OTHER.encode())
KEY = text(1, b"sequence_id")
FIVE, SIX = (field(2, VARINT, varint(number)) for number in (5, 6))


def parameter(*parts: bytes) -> bytes:
    return text(4, b"".join(parts))


SUSPICIOUS = {
    "a second name": RENAMED,
    "a name in a group": field(9, OPEN, RENAMED) + field(9, CLOSE, b""),
    "a group that is field 1": field(1, OPEN, b"") + field(1, CLOSE, b""),
    "an end without a group": field(1, CLOSE, b""),
    "a group without an end": field(9, OPEN, RENAMED),
    "a tag beyond 32 bits": b"\x8a\x80\x80\x80\x10" + RENAMED[1:],
    "a tag of five bytes": b"\x8a\x80\x80\x80\x00" + RENAMED[1:],
    "a tag of six bytes": b"\x8a\x80\x80\x80\x80\x00" + RENAMED[1:],
    "a size of five bytes": text(1, OTHER.encode(), size_length=5),
    "a size of six bytes": text(1, OTHER.encode(), size_length=6),
    "a size beyond 32 bits": b"\x0a\x86\x80\x80\x80\x10" + OTHER.encode(),
    "field number 0": b"\x02\x01B",
    "the largest field": text(2**29 - 1, RENAMED),
    "wire type 6": b"\x0e" + RENAMED[1:],
    "wire type 7": b"\x0f" + RENAMED[1:],
    "a name that is a number": field(1, VARINT, b"\x05"),
    "a name that is four bytes": field(1, FIXED32, OTHER.encode()[:4]),
    "a number beyond 64 bits": field(9, VARINT, b"\xff" * 9 + b"\x7f"),
    "a number of eleven bytes": field(9, VARINT, b"\xff" * 10 + b"\x01"),
    "a name that is not UTF-8 and then one that is": text(1, b"\xff") + RENAMED,
    "a zero byte": b"\x00",
    "half a field": RENAMED[:-1],
    "an unknown text that is not UTF-8": text(9, b"\xff"),
    "a name in a tensor": text(5, RENAMED),
    "a sequence": parameter(KEY, text(2, FIVE)),
    "its value first": parameter(text(2, FIVE), KEY),
    "two sequences": parameter(KEY, text(2, FIVE)) + parameter(KEY, text(2, SIX)),
    "two values": parameter(KEY, text(2, FIVE), text(2, SIX)),
    "a value, and nothing more of it": parameter(KEY, text(2, FIVE), text(2, b"")),
    "two keys": parameter(text(1, b"note"), KEY, text(2, FIVE)),
    "an unknown field": parameter(KEY, text(2, FIVE), text(3, SIX)),
    "a key that is a number": parameter(KEY, field(1, VARINT, b"\x05"), text(2, FIVE)),
    "no value": parameter(KEY),
    "a value cut in two": parameter(KEY, text(2, FIVE[:1]), text(2, FIVE[1:])),
    "two choices": parameter(KEY, text(2, FIVE + SIX)),
    "a text and then a number": parameter(KEY, text(2, text(3, b"five") + SIX)),
    "a double after it": parameter(KEY, text(2, FIVE + field(4, FIXED64, bytes(8)))),
    "an unknown choice after it": parameter(KEY, text(2, FIVE + field(9, VARINT, b"\x06"))),
    "the same choice, four bytes wide": parameter(KEY, text(2, FIVE + field(2, FIXED32, bytes(4)))),
    "a negative sequence": parameter(KEY, text(2, field(2, VARINT, varint(2**64 - 5)))),
    "more than 64 bits": parameter(KEY, text(2, field(2, VARINT, b"\x85" + b"\x80" * 8 + b"\x7e"))),
    "a number longer than it need be": parameter(KEY, text(2, field(2, VARINT, varint(5, 9)))),
    "a sequence with a name": parameter(KEY, text(2, text(3, b"five"))),
    "a sequence without one": parameter(KEY, text(2, text(3, b""))),
    "an unsigned sequence": parameter(KEY, text(2, field(5, VARINT, b"\x05"))),
    "a sequence that is true": parameter(KEY, text(2, field(1, VARINT, b"\x01"))),
    "a sequence in a group": field(4, OPEN, KEY + text(2, FIVE)) + field(4, CLOSE, b""),
    "a group in a parameter": parameter(KEY, text(2, FIVE), b"\x1b\x1c"),
    "a long tag in a parameter": parameter(text(1, b"sequence_id", 5), text(2, FIVE, 3)),
}


@pytest.mark.parametrize("name", SUSPICIOUS)
@pytest.mark.parametrize("first", [False, True], ids=["behind", "before"])
def test_triton_reads_what_the_walk_reads_or_refuses(
    server: DirectTriton, name: str, first: bool
) -> None:
    suspicious = SUSPICIOUS[name]
    message = suspicious + request() if first else request() + suspicious
    walked = of_the_walk(message)
    if walked is not None:
        assert of_triton(server, message) in (walked, None)


def test_what_is_plain_is_read_by_both(server: DirectTriton) -> None:
    for plain, wanted in (
        (request(), Reading(ONE, 0)),
        (request() + RENAMED, Reading(OTHER, 0)),
        (request() + SUSPICIOUS["a sequence"], Reading(ONE, 5)),
        (request() + SUSPICIOUS["two sequences"], Reading(ONE, 6)),
        (request() + SUSPICIOUS["a sequence with a name"], Reading(ONE, "five")),
    ):
        assert of_the_walk(plain) == wanted
        assert of_triton(server, plain) == wanted


def test_the_beginnings_of_the_fuzzing_too(server: DirectTriton) -> None:
    for seed in seeds.messages():
        message = seed + request()
        if (walked := of_the_walk(message)) is not None:
            assert of_triton(server, message) in (walked, None)
