"""Universal Binary JSON, as XGBoost writes it, read within bounds."""

import struct
from collections.abc import Iterator
from typing import Any, Final

from services.registry.formats.artifact import Content
from services.registry.formats.refusal import Refusal

_NUMBERS: Final = {
    b"i": ">b",
    b"U": ">B",
    b"I": ">h",
    b"u": ">H",
    b"l": ">i",
    b"m": ">I",
    b"L": ">q",
    b"M": ">Q",
    b"d": ">f",
    b"D": ">d",
    b"C": ">c",
}
_MAX_DEPTH: Final = 32
_MAX_VALUES: Final = 5_000_000
_MAX_TEXT: Final = 2**20  # bytes


def parse(content: Content, name: str) -> Any:
    """Return the value of a file. Raises Refusal."""
    reader = _UbjsonReader(content, name)
    value = reader.value(reader.take(1), 0)
    if reader.at != len(content):
        raise Refusal(f"{name} has {len(content) - reader.at} bytes after its end")
    return value


class _UbjsonReader:
    def __init__(self, content: Content, name: str) -> None:
        self.at = 0
        self._content = content
        self._name = name
        self._values = 0

    def take(self, size: int) -> bytes:
        end = self.at + size
        if size < 0 or end > len(self._content):
            raise Refusal(f"{self._name} is cut off at byte {len(self._content)}")
        data = bytes(self._content[self.at : end])
        self.at = end
        return data

    def value(self, kind: bytes, depth: int) -> Any:
        self._values += 1
        if depth > _MAX_DEPTH or self._values > _MAX_VALUES:
            raise Refusal(f"{self._name} has too many values, or nests them too deep")
        if kind in _NUMBERS:
            form = _NUMBERS[kind]
            return struct.unpack(form, self.take(struct.calcsize(form)))[0]
        match kind:
            case b"S":
                return self._text()
            case b"{":
                return self._object(depth)
            case b"[":
                return self._array(depth)
            case b"T" | b"F":
                return kind == b"T"
            case b"Z" | b"N":
                return None
        raise Refusal(f"{self._name} has a value of no known type at byte {self.at - 1}")

    def _size(self) -> int:
        kind = self.take(1)
        if kind not in _NUMBERS or kind in (b"d", b"D", b"C"):
            raise Refusal(f"{self._name} has a size of no known type at byte {self.at - 1}")
        size = int(self.value(kind, 0))
        if not 0 <= size <= len(self._content):
            raise Refusal(f"{self._name} has a size of {size} at byte {self.at}")
        return size

    def _text(self) -> str:
        size = self._size()
        if size > _MAX_TEXT:
            raise Refusal(f"{self._name} has a text of {size} bytes")
        return self.take(size).decode(errors="replace")

    def _object(self, depth: int) -> dict[str, Any]:
        kind, count = self._head()
        found: dict[str, Any] = {}
        for _ in self._items(count, b"}"):
            key = self._text()
            found[key] = self.value(kind or self.take(1), depth + 1)
        return found

    def _array(self, depth: int) -> list[Any]:
        kind, count = self._head()
        if kind in _NUMBERS and count >= 0:
            form = _NUMBERS[kind]
            self._values += count
            if self._values > 10 * _MAX_VALUES:
                raise Refusal(f"{self._name} has too many values")
            raw = self.take(count * struct.calcsize(form))
            return list(struct.unpack(f">{count}{form[1:]}", raw))
        return [self.value(kind or self.take(1), depth + 1) for _ in self._items(count, b"]")]

    def _head(self) -> tuple[bytes, int]:
        """Return the type of a container's values and their number; b"" and -1 if not said."""
        kind, count = b"", -1
        if self._next() == b"$":
            self.take(1)
            kind = self.take(1)
        if self._next() == b"#":
            self.take(1)
            count = self._size()
        if kind and count < 0:
            raise Refusal(f"{self._name} has an array without a size at byte {self.at}")
        if kind in (b"T", b"F", b"Z", b"N") and count > _MAX_VALUES:
            raise Refusal(f"{self._name} has too many values")
        return kind, count

    def _items(self, count: int, end: bytes) -> Iterator[None]:
        if count >= 0:
            for _ in range(count):
                yield
            return
        while self._next() != end:
            yield
        self.take(1)

    def _next(self) -> bytes:
        if self.at >= len(self._content):
            raise Refusal(f"{self._name} is cut off at byte {len(self._content)}")
        return bytes(self._content[self.at : self.at + 1])
