"""Replies of a Triton in a stream, read and amended without decoding a tensor.

A ModelStreamInferResponse consists of an error message and a ModelInferResponse, either of which
may be empty. Triton sets `triton_final_response` in every reply to a request that it started, and
in none to a request that it refused at once."""

from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, NamedTuple, TypeVar

from services.router.core.wire.request import MODEL_VERSION, VERSION_MARK, name_fields
from shoal.protobuf import Malformed, encoded, text_field, varint

# Tags of the fields of inference.ModelStreamInferResponse.
_ERROR: Final = 1 << 3 | 2
_RESPONSE: Final = 2 << 3 | 2

# Tags of the fields of inference.ModelInferResponse.
_VERSION: Final = MODEL_VERSION << 3 | 2
_ID: Final = 3 << 3 | 2
_PARAMETER: Final = 4 << 3 | 2
_OUTPUT: Final = 5 << 3 | 2

_FINAL: Final = b"\x0a\x15triton_final_response\x12\x02\x08"  # followed by one byte, the value
_LAST: Final = bytes((_PARAMETER, len(_FINAL) + 1)) + _FINAL + b"\x01"
_GLANCE: Final = 512  # bytes, within which the outputs begin unless names are long
_ANSWERS: Final = bytes((_RESPONSE,))
_VERSION_MARK: Final = VERSION_MARK.encode()
_SIZE_BYTES: Final = 5

Item = TypeVar("Item")


class StreamReply(NamedTuple):
    """What a reply says."""

    #: "" if it is not an error.
    error: str
    #: The id that the client gave its request.
    id: str
    #: Whether it is the last reply to its request; None if Triton refused the request at once.
    final: bool | None
    #: Whether it says nothing but that it is the last one.
    bare: bool


def parse_reply(message: bytes) -> StreamReply:
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
    bare = final is True and not error and version.startswith(_VERSION_MARK)
    return StreamReply(error.decode(errors="replace"), id_.decode(errors="replace"), final, bare)


def is_only_reply(message: bytes) -> bool:
    """Return whether a ModelStreamInferResponse as Triton writes it is not an error and is the only
    reply to its request, as far as a glance can tell. If False, `parse_reply` knows more."""
    return message[:1] == _ANSWERS and message.find(_LAST, 0, _GLANCE) > 0


def split(message: bytes) -> tuple[str, bytes]:
    """Split a ModelStreamInferResponse into its error message, "" if it has none, and its
    ModelInferResponse. Raises Malformed."""
    error, start, end = _parts(message)
    return error.decode(errors="replace"), message[start:end]


def amended(message: bytes, model: str | None, version: str | None) -> bytes:
    """Return a ModelStreamInferResponse with another model name or version. Raises Malformed."""
    error, start, end = _parts(message)
    return _encode_reply(error, memoryview(message)[start:end], name_fields(model, version))


def as_stream_reply(message: bytes) -> bytes:
    """Return a ModelInferResponse as the only reply in a stream to its request."""
    return _encode_reply(b"", message, _LAST)


def failure(id_: str, text: str, model: str, version: str) -> bytes:
    """Return the reply by which Triton says that a request it started has failed. `version` is as
    the request named it."""
    fields = b"".join(
        text_field(number, word) for number, word in ((1, model), (2, version), (3, id_)) if word
    )
    return _encode_reply(text.encode(), fields, _LAST)


def refusal(id_: str, text: str) -> bytes:
    """Return the reply by which Triton refuses a request: the text, and nothing but the request's
    id."""
    return _encode_reply(text.encode(), text_field(3, id_) if id_ else b"")


def _encode_reply(error: bytes, *inside: bytes | memoryview) -> bytes:
    parts = [bytes((_RESPONSE,)), encoded(sum(map(len, inside))), *inside]
    if error:
        parts = [bytes((_ERROR,)), encoded(len(error)), error, *parts]
    return b"".join(parts)


def _parts(message: bytes) -> tuple[bytes, int, int]:
    """Return the error message, and where the response begins and ends."""
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


class PendingRequests(Generic[Item]):
    """The requests that a call has under way, and which of them a reply answers.

    Clients need not give their requests ids, and may give several the same one. Ids are passed on
    unchanged, since models may depend on them. Requests with the same id are taken to end in the
    order in which they were sent."""

    def __init__(self) -> None:
        self._begun: dict[str, deque[Item]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, id_: str, item: Item) -> None:
        self._count += 1
        self._begun.setdefault(id_, deque()).append(item)

    def oldest(self, id_: str) -> Item | None:
        """Return the request that the next reply with this id belongs to."""
        begun = self._begun.get(id_)
        return begun[0] if begun else None

    def count(self, id_: str) -> int:
        """Return how many requests a reply with this id may belong to."""
        return len(self._begun.get(id_, ()))

    def end(self, id_: str) -> None:
        """Remove the request that `oldest` returns."""
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


class ReplyOrder(Generic[Item]):
    """Holds replies back so that they go out in the order of their requests, one for each."""

    def __init__(self) -> None:
        self._waiting: deque[Item] = deque()
        self._answers: dict[Item, bytes] = {}

    def join(self, item: Item) -> None:
        """Add a request at the end."""
        self._waiting.append(item)

    def answer(self, item: Item, message: bytes) -> list[bytes]:
        """Return the replies that go out now that `item` has its own."""
        if not self._answers and self._waiting[0] is item:
            self._waiting.popleft()
            return [message]
        self._answers[item] = message
        return self._next()

    def leave(self, item: Item) -> list[bytes]:
        """Let `item` keep nobody waiting any longer, and return the replies that go out for it,
        which include its own if there is one."""
        self._waiting.remove(item)
        own = self._answers.pop(item, None)
        return [*([] if own is None else [own]), *self._next()]

    def _next(self) -> list[bytes]:
        out: list[bytes] = []
        while self._waiting and self._waiting[0] in self._answers:
            out.append(self._answers.pop(self._waiting.popleft()))
        return out
