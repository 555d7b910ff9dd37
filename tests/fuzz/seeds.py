"""Messages to begin with: requests as clients send them, and shapes that parsers disagree on."""

from collections.abc import Iterator
from typing import Any

from tritonclient.grpc import service_pb2


def requests() -> Iterator[Any]:
    """inference.ModelInferRequest messages."""
    plain = service_pb2.ModelInferRequest(model_name="m", model_version="1", id="r")
    plain.inputs.add(name="INPUT", datatype="FP32", shape=[2])
    plain.outputs.add(name="OUTPUT").parameters["classification"].int64_param = 2
    plain.raw_input_contents.append(bytes(8))
    yield plain
    for id_ in (7, -1, "seven"):
        sequence = service_pb2.ModelInferRequest(model_name="m")
        parameters = sequence.parameters
        if isinstance(id_, int):
            parameters["sequence_id"].int64_param = id_
        else:
            parameters["sequence_id"].string_param = id_
        parameters["sequence_start"].bool_param = True
        parameters["sequence_end"].bool_param = True
        parameters["priority"].uint64_param = 2
        parameters["ratio"].double_param = 0.5
        yield sequence


def messages() -> Iterator[bytes]:
    yield from (request.SerializeToString() for request in requests())
    name = b"\x0a\x01A"
    yield name + b"\x0a\x01B"  # twice
    yield name + b"\x43\x0a\x01B\x44"  # inside a group
    yield name + b"\x8a\x80\x80\x80\x10\x01B"  # a tag beyond 32 bits
    yield name + b"\x0a\x81\x80\x80\x80\x80\x00B"  # an overlong size
    yield name + b"\x40" + b"\xff" * 9 + b"\x7f"  # a number beyond 64 bits
    yield b"\x0a\x01\xff" + name  # no UTF-8, and overridden
    # A value that is no parameter, of a key that is not read, and then a group in an entry.
    yield name + b"\x22\x0f\x0a\x09sequence_\x12\x02\x0f\x01" + b"\x22\x0d\x0a\x09sequence_\x73\x74"
    # An output whose parameter is "class", and the rest of the word a field that protobuf drops.
    output = b"\x12\x14\x0a\x05classification\x12\x02\x10\x02"
    yield name + b"\x32" + bytes((len(output),)) + output
    key, five = b"\x0a\x0bsequence_id", b"\x12\x02\x10\x05"
    for entry in (
        key + five + b"\x1a\x02\x10\x06",  # an unknown field
        key + five + b"\x12\x00",  # two values that parsers merge
        key + b"\x12\x0b\x10\x05\x21" + bytes(8),  # two choices
        five + key,
    ):
        yield name + b"\x22" + bytes((len(entry),)) + entry
