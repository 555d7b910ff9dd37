"""Pickled models, plain or by joblib: programs that build the model when they are run."""

import lzma
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content import pickles
from services.registry.formats.content.pickles import PickleImports
from services.registry.formats.content.torch_files import LEGACY, one_of
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal

name = "sklearn-pickle"
backend = ""
runs_code = "a pickle is a program, and runs whatever it imports"

_MAX_UNPACKED: Final = 32 * 2**20  # bytes of a compressed pickle that are looked into
_HEAD: Final = 1024


def detect(artifact: Artifact) -> bool:
    return bool(_found(artifact))


def validate(artifact: Artifact) -> Described:
    file = one_of(_found(artifact), "model.pkl", "pickles")
    unpack = _unpacker(artifact.read(file, 16))
    if unpack is None:
        with artifact.mapped(file) as content:
            found = pickles.imports(content, file)
    else:
        found = _compressed(artifact, file, unpack)
    pickles.check_harmless(found, file)
    own = [one for one in found.names if one.startswith("__main__.")]
    if own:
        raise Refusal(
            f"{file} is a pickle that imports {pickles.shown(own)}, which only the program has that"
            " saved it: move what it names into a package, or convert the model to ONNX"
        )
    notes = [f"imports {pickles.shown(found.names)}"]
    if not found.whole:
        notes.append("seen as far as its first array")
    return Described(notes=tuple(notes), file=file)


def _compressed(
    artifact: Artifact, file: str, unpack: Callable[[bytes, int], bytes]
) -> PickleImports:
    """Unpack the beginning of a pickle, within bounds, and walk it. Raises Refusal."""
    try:
        content = unpack(artifact.read(file, _MAX_UNPACKED), _MAX_UNPACKED)
    except (zlib.error, lzma.LZMAError, EOFError, ValueError):
        raise Refusal(f"{file} is a compressed pickle that is damaged") from None
    if not pickles.is_pickle(content):
        raise Refusal(f"{file} is compressed, and not a pickle inside")
    try:
        return pickles.imports(content, file)
    except Refusal:
        if len(content) < _MAX_UNPACKED:
            raise
        raise Refusal(
            f"{file} is a compressed pickle that unpacks to more than {_MAX_UNPACKED} bytes: save "
            "it without compression"
        ) from None


def _found(artifact: Artifact) -> list[str]:
    return [one for one, head in artifact.heads(_HEAD) if _is_pickle(head)]


def _is_pickle(head: bytes) -> bool:
    if pickles.is_pickle(head):
        return head[: len(LEGACY)] != LEGACY
    if _is_text_pickle(head):
        return True
    unpack = _unpacker(head)
    if unpack is None:
        return False
    with suppress(zlib.error, lzma.LZMAError, EOFError, ValueError):
        return pickles.is_pickle(unpack(head, 2))
    return False


def _is_text_pickle(head: bytes) -> bool:
    """Return whether it begins like a pickle of protocol 0 or 1: a global, or a mark and one."""
    begin = head.lstrip(b"(")[:256]
    words = begin[1:].split(b"\n")
    return (
        begin[:1] in (b"c", b"i")
        and len(words) > 2
        and all(part.isidentifier() for part in words[0].decode("latin-1").split("."))
        and words[1].decode("latin-1").isidentifier()
    )


def _unpacker(head: bytes) -> Callable[[bytes, int], bytes] | None:
    """Return what unpacks the beginning of such a file, or None if it is not compressed."""
    if head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0:
        return lambda data, most: zlib.decompressobj().decompress(data, most)
    if head[:3] == b"\x1f\x8b\x08":
        return lambda data, most: zlib.decompressobj(31).decompress(data, most)
    if head[:6] == b"\xfd7zXZ\x00":
        return lambda data, most: lzma.LZMADecompressor(memlimit=2**28).decompress(data, most)
    return None
