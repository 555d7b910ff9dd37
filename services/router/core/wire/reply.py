"""What a Triton says in a stream: its replies, read and mended without decoding a tensor.

A ModelStreamInferResponse is an error message and a ModelInferResponse, either of which may be
empty. Triton sets `triton_final_response` in every reply to a request that it began, and in none to
one that it refused at once.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, NamedTuple, TypeVar

from services.router.core.wire.request import MARK, MODEL_VERSION, with_fields
from shoal.protobuf import Malformed, encoded, text_field, varint

# Field numbers of inference.ModelStreamInferResponse as tags of length-delimited fields.
_ERROR: Final = 1 << 3 | 2
_RESPONSE: Final = 2 << 3 | 2

# Likewise of inference.ModelInferResponse.
_VERSION: Final = MODEL_VERSION << 3 | 2
_ID: Final = 3 << 3 | 2
_PARAMETER: Final = 4 << 3 | 2
_OUTPUT: Final = 5 << 3 | 2

_FINAL: Final = b"\x0a\x15triton_final_response\x12\x02\x08"  # and one byte, the value
_LAST: Final = bytes((_PARAMETER, len(_FINAL) + 1)) + _FINAL + b"\x01"
_GLANCE: Final = 512  # bytes; what comes before the outputs is in them, unless names are long
_ANSWERS: Final = bytes((_RESPONSE,))
_MARK: Final = MARK.encode()
_SIZE_BYTES: Final = 5

Item = TypeVar("Item")


class StreamReply(NamedTuple):
    """`error`: "" where it is none. `id`: the request's own. `final`: whether no other reply to
    that request comes; None where Triton refused it at once. `bare`: it says that alone."""

    error: str
    id: str
    final: bool | None
    bare: bool


def reply(message: bytes) -> StreamReply:
    """Read a ModelStreamInferResponse as Triton writes it. Raises Malformed."""
    error, position, end = _parts(message)
    id_, version = b"", b""
    final: bool | None = None
    while position < end:
        tag = message[position]
        if tag >= _OUTPUT:
            break
        size, position = _size(message, position + 1)
        content = message[position : position + size]
        position += size
        if tag == _ID:
            id_ = content
        elif tag == _VERSION:
            version = content
        elif tag == _PARAMETER and content.startswith(_FINAL):
            final = content[-1] != 0
    bare = final is True and not error and version.startswith(_MARK)
    return StreamReply(error.decode(errors="replace"), id_.decode(errors="replace"), final, bare)


def whole(message: bytes) -> bool:
    """Whether a ModelStreamInferResponse as Triton writes it is no error and the only reply to its
    request, as far as can be seen at a glance: where it is not, `reply` tells."""
    return message[:1] == _ANSWERS and message.find(_LAST, 0, _GLANCE) > 0


def response(message: bytes) -> tuple[str, bytes]:
    """The error message, "" where it is none, and the ModelInferResponse. Raises Malformed."""
    error, start, end = _parts(message)
    return error.decode(errors="replace"), message[start:end]


def amended(message: bytes, model: str | None, version: str | None) -> bytes:
    """The reply with another model name or version. Raises Malformed."""
    error, start, end = _parts(message)
    return _whole(error, memoryview(message)[start:end], with_fields(b"", model, version))


def streamed(message: bytes) -> bytes:
    """A ModelInferResponse as the only reply of a stream to its request."""
    return _whole(b"", message, _LAST)


def failure(id_: str, text: str, model: str, version: str) -> bytes:
    """As Triton says that a request which it began has failed; `version`: as it was asked for."""
    said = b"".join(
        text_field(number, word) for number, word in ((1, model), (2, version), (3, id_)) if word
    )
    return _whole(text.encode(), said, _LAST)


def refusal(id_: str, text: str) -> bytes:
    """As Triton refuses a request: the text, and the request's id alone."""
    return _whole(text.encode(), text_field(3, id_) if id_ else b"")


def _whole(error: bytes, *inside: bytes | memoryview) -> bytes:
    parts = [bytes((_RESPONSE,)), encoded(sum(map(len, inside))), *inside]
    if error:
        parts = [bytes((_ERROR,)), encoded(len(error)), error, *parts]
    return b"".join(parts)


def _parts(message: bytes) -> tuple[bytes, int, int]:
    """The error message, and where the response begins and ends."""
    error, start, end = b"", 0, 0
    position = 0
    while position < len(message):
        tag = message[position]
        size, position = _size(message, position + 1)
        if tag == _ERROR:
            error = message[position : position + size]
        elif tag == _RESPONSE:
            start, end = position, position + size
        else:
            raise Malformed(f"tag {tag} in a reply of a stream")
        position += size
    if position != len(message):
        raise Malformed("it ends in the middle of a field")
    return error, start, end


def _size(message: bytes, position: int) -> tuple[int, int]:
    if position < len(message) and message[position] < 0x80:
        return message[position], position + 1
    return varint(message, position, _SIZE_BYTES)


class Pending(Generic[Item]):
    """Requests that one call has under way, and which of them a reply answers.

    A client need not give its requests ids, or may give several the same one; they are passed on as
    they are, since models go by them. What has the same id is taken to end in the order in which it
    was asked."""

    def __init__(self) -> None:
        self._begun: dict[str, deque[Item]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, id_: str, item: Item) -> None:
        self._count += 1
        self._begun.setdefault(id_, deque()).append(item)

    def answered(self, id_: str) -> Item | None:
        begun = self._begun.get(id_)
        return begun[0] if begun else None

    def alike(self, id_: str) -> int:
        """How many a reply with this id may belong to."""
        return len(self._begun.get(id_, ()))

    def end(self, id_: str) -> None:
        """The one that `answered` gives is under way no more."""
        begun = self._begun[id_]
        begun.popleft()
        self._count -= 1
        if not begun:
            del self._begun[id_]

    def __iter__(self) -> Iterator[Item]:
        for begun in self._begun.values():
            yield from begun

    def clear(self) -> None:
        self._begun.clear()
        self._count = 0


class Turns(Generic[Item]):
    """Answers that go out in the order in which their requests came, one each."""

    def __init__(self) -> None:
        self._waiting: deque[Item] = deque()
        self._answers: dict[Item, bytes] = {}

    def join(self, item: Item) -> None:
        self._waiting.append(item)

    def answer(self, item: Item, message: bytes) -> list[bytes]:
        """What goes out now that `item` has its answer."""
        if not self._answers and self._waiting[0] is item:
            self._waiting.popleft()
            return [message]
        self._answers[item] = message
        return self._next()

    def leave(self, item: Item) -> list[bytes]:
        """What goes out now that `item` keeps nobody waiting any more; its own answer among that,
        if it has one."""
        self._waiting.remove(item)
        own = self._answers.pop(item, None)
        return [*([] if own is None else [own]), *self._next()]

    def _next(self) -> list[bytes]:
        out: list[bytes] = []
        while self._waiting and self._waiting[0] in self._answers:
            out.append(self._answers.pop(self._waiting.popleft()))
        return out
