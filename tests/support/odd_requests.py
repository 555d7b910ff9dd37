"""Inference requests that are right, nearly right or not right at all, drawn by a seed."""

import json
import random
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

FLOATS: Final = 16  # of the models' input, as in bench.residency.models
NUMBERS: Final = np.arange(FLOATS, dtype="<f4")

_KEYS: Final = (
    *(b"a", b"", b"timeout", b"headers", b"binary_data", b"binary_data_size"),
    *(b"sequence_id", b"sequence_start", b"sequence_end", b"Sequence_id", b"priority"),
    *(b"shared_memory_region", b"shared_memory_offset", b"shared_memory_byte_size"),
    *(b"classification", b"binary_data_output", b"triton_enable_empty_final_response", b"\xff"),
)
_SHAPES: Final[tuple[list[int], ...]] = (
    *([], [1], [FLOATS], [0, 16], [4, 4], [1, 16, 1], [64, 1], [65, 1], [1, 1 << 20]),
    *([-1, 16], [-1, -1], [-(2**63)], [2**63 - 1], [2**32, 2**32], [2**62, 4]),
    *([2**47, 2], [2**48], [2**48 + 1], [1] * 64, [1] * 65),
)


class Message:
    """Draws serialized ModelInferRequests for `models`, of which a part is `odd`."""

    def __init__(self, seed: int, models: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._models = [name.encode() for name in models]
        self._odd = self._random.choice((0.0, 0.03, 0.3))  # probability of each oddity

    def serialized(self) -> bytes:
        draw = self._random
        fields = [self._field(1, self._one(self._models, b"nope", b"", b"a/b", b"\xff", b"1/m"))]
        if draw.random() < 0.5:
            versions = (b"2", b"01", b"-1", b"9" * 20, b"latest", b"1/m", b"\xff")
            fields.append(self._field(2, self._one((b"", b"1"), *versions)))
        if draw.random() < 0.4:
            fields.append(self._field(3, self._one((b"", b"id"), b"\xc3\xbc", b"\xff", b"x" * 300)))
        fields += [self._field(4, self._entry()) for _ in self._some(2)]
        fields += [self._field(5, self._input()) for _ in self._some(20, usually=1)]
        fields += [self._field(6, self._output()) for _ in self._some(2)]
        raw = NUMBERS.tobytes()
        contents = (raw[:-4], raw * 2, b"", b"abc", bytes(70_000))
        fields += [self._field(7, self._one((raw,), *contents)) for _ in self._some(2, usually=1)]
        if self._oddly():
            fields.append(self._field(draw.choice((0, 8, 15, 16, 1000, 2**28)), b"unknown"))
        if self._oddly():
            others = (b"\x40\x07", b"\x41" + bytes(8), b"\x45abcd", b"\x43\x44", b"\x43", b"\x47")
            fields.append(draw.choice(others))
        if self._oddly():
            fields.append(draw.choice(fields))
        if draw.random() < 0.3:
            draw.shuffle(fields)
        message = b"".join(fields)
        if self._oddly():
            message = message[: draw.randrange(len(message) + 1)]
        if message and self._oddly():
            place = draw.randrange(len(message))
            message = message[:place] + bytes((draw.randrange(256),)) + message[place + 1 :]
        return message

    def _oddly(self) -> bool:
        return self._random.random() < self._odd

    def _one(self, usual: Sequence[Any], *odd: Any) -> Any:
        return self._random.choice(odd if self._oddly() else usual)

    def _some(self, most: int, *, usually: int = 0) -> Iterable[int]:
        return range(self._random.randint(0, most) if self._oddly() else usually)

    def _varint(self, number: int) -> bytes:
        number %= 2**64
        found = bytearray()
        while number > 127:
            found.append(number & 127 | 128)
            number >>= 7
        found.append(number)
        if self._oddly():  # longer than it need be
            found[-1] |= 128
            found += b"\x80" * self._random.randrange(6) + b"\x00"
        return bytes(found)

    def _field(self, number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return self._varint(number << 3) + self._varint(value)
        size = len(value) + self._one((0,), -1, 1, 1000, 2**31, 2**63)
        return self._varint(number << 3 | 2) + self._varint(size) + value

    def _entry(self) -> bytes:
        """Return an entry of a map of parameters. No more than one is odd, since Triton looks at
        them in no fixed order."""
        draw = self._random
        value = draw.choice(
            (
                *(b"", self._field(1, 1), self._field(2, draw.choice((0, 1, -1, 2**40)))),
                *(self._field(3, b"a"), self._field(3, b"\xff"), self._field(5, 2**63)),
                b"\x21" + struct.pack("<d", 1.5),
            )
        )
        entry = self._field(1, draw.choice(_KEYS)) + self._field(2, value)
        return entry + (self._field(1, draw.choice(_KEYS)) if self._oddly() else b"")

    def _input(self) -> bytes:
        draw = self._random
        types = (b"INT32", b"BYTES", b"FP99", b"", b"FP16", b"BOOL")
        shape = self._one(([1, FLOATS],), *_SHAPES)
        parts = [
            self._field(1, self._one((b"INPUT",), b"OTHER", b"", b"\xff")),
            self._field(2, self._one((b"FP32",), *types)),
        ]
        if draw.random() < 0.8:
            parts.append(self._field(3, b"".join(map(self._varint, shape))))
        else:
            parts += [self._field(3, size) for size in shape]
        parts += [self._field(4, self._entry()) for _ in self._some(1)]
        if self._oddly():
            parts.append(self._field(5, self._field(6, NUMBERS.tobytes())))
        if self._oddly():
            parts.append(self._field(draw.choice((0, 6, 9, 15, 16, 100)), b"unknown"))
        if self._oddly():
            parts *= draw.choice((2, 90))
        return b"".join(parts)

    def _output(self) -> bytes:
        name = self._one((b"OUTPUT",), b"OTHER", b"")
        return self._field(1, name) + b"".join(self._field(2, self._entry()) for _ in self._some(1))


class Body:
    """Draws bodies of HTTP's infer: JSON, and tensors in binary behind it. No more than one thing
    about each is odd, since of several mistakes, any may be told."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._odd = self._random.choice((0.0, 0.1))

    def drawn(self) -> tuple[bytes, int | None]:
        """Return a body, and the bytes of its JSON if tensors follow it."""
        binary = self._random.random() < 0.5
        tensor: dict[str, Any] = {
            "name": self._one(("INPUT",), "OTHER", "", 1, None),
            "shape": self._one(([1, FLOATS],), [], [-1, 16], [1.5], ["a"], {}, *_SHAPES),
            "datatype": self._one(("FP32",), "INT32", "BYTES", "FP99", "", 1),
        }
        if binary:
            size = self._one((4 * FLOATS,), 0, -1, 60, 2**63, 2**64, "64", 64.0, None)
            tensor["parameters"] = {"binary_data_size": size}
        else:
            data = NUMBERS.tolist()
            others: tuple[Any, ...] = (
                [],
                data[1:],
                [*data, 1],
                [data] * 2,
                ["a"] * FLOATS,
                [None],
                1,
                {},
                [[[]]],
            )
            tensor["data"] = self._one((data, [data]), *others)
        if self._oddly():
            tensor.pop(self._random.choice(sorted(tensor)))
        request: dict[str, Any] = {"inputs": self._one(([tensor],), [], {}, None)}
        if self._oddly():
            request["id"] = self._random.choice(("a", "", 1, None, "ü"))
        if self._oddly():
            key = self._random.choice(
                ("a", "timeout", "sequence_id", "priority", "binary_data_output", "headers")
            )
            value = self._random.choice((1, -1, 1.5, True, "a", [1], {"a": 1}, None))
            request["parameters"] = {key: value}
        if self._oddly():
            output: dict[str, Any] = {"name": self._one(("OUTPUT",), "OTHER", 1)}
            key = self._random.choice(
                ("binary_data", "classification", "shared_memory_region", "a")
            )
            output["parameters"] = {key: self._one((True, 1), "a", [])}
            request["outputs"] = [output]
        head = json.dumps(request, ensure_ascii=self._random.random() < 0.5).encode()
        if self._oddly():
            others_ = (b"[]", b"null", b"{}", b"1", b"", b"\xef\xbb\xbf" + head, head + b"x")
            head = self._random.choice((*others_, head[: self._random.randrange(len(head))]))
        if not binary:
            return head, None
        raw = NUMBERS.tobytes()
        contents = self._one((raw,), b"", raw[:-4], raw + b"abcd")
        return head + contents, len(head) + self._one((0,), -1, 1, 1000, 2**32, 2**64)

    def _oddly(self) -> bool:
        oddly = self._random.random() < self._odd
        if oddly:
            self._odd = 0.0
        return oddly

    def _one(self, usual: Sequence[Any], *odd: Any) -> Any:
        return self._random.choice(odd if self._oddly() else usual)
