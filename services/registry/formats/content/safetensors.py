"""Headers of safetensors files: every tensor's type, shape and place."""

import math
from typing import Any, Final

import orjson

from services.registry.formats.artifact import Artifact
from services.registry.formats.refusal import Refusal

_MAX_HEADER: Final = 8 * 2**20  # bytes
_MAX_DIMS: Final = 32
_BITS: Final = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins so can be one: 8 bytes for a size, then JSON."""
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40


def check(artifact: Artifact, name: str) -> frozenset[str]:
    """Check a file's header and return the names of its tensors. Raises Refusal."""
    if name not in artifact.files:
        raise Refusal(f"{name} is missing")
    total = artifact.files[name]
    size = int.from_bytes(artifact.read(name, 8), "little")
    if total < 8 or size > total - 8:
        raise Refusal(f"{name} is cut off: its header has {size} bytes, the file {total}")
    if size > _MAX_HEADER:
        raise Refusal(f"{name} has a header of {size} bytes, more than {_MAX_HEADER}")
    try:
        header = orjson.loads(artifact.read(name, size, 8))
    except orjson.JSONDecodeError:
        raise Refusal(f"the header of {name} is not JSON") from None
    if not isinstance(header, dict):
        raise Refusal(f"the header of {name} lists no tensors")
    header.pop("__metadata__", None)
    _check_places(name, header, total - 8 - size)
    return frozenset(header)


def _check_places(name: str, header: dict[str, Any], size: int) -> None:
    """Check that the tensors fill the file's data one after another."""
    places = sorted(_place(name, tensor, said) for tensor, said in header.items())
    end = 0
    for start, stop, tensor in places:
        if start < end:
            raise Refusal(f"{tensor!r} in {name} overlaps another tensor")
        if start > end:
            raise Refusal(
                f"{name} has {start - end} bytes before {tensor!r} that belong to nothing"
            )
        end = stop
    if end > size:
        raise Refusal(f"{name} is cut off: its tensors need {end} bytes, and it has {size}")
    if end < size:
        raise Refusal(f"{name} has {size - end} bytes after its tensors that belong to nothing")


def _place(name: str, tensor: str, said: Any) -> tuple[int, int, str]:
    shown = tensor[:200]
    match said:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            pass
        case _:
            raise Refusal(f"the header of {name} does not say what {shown!r} is")
    if kind not in _BITS:
        raise Refusal(f"{shown!r} in {name} has the unknown type {kind[:50]!r}")
    if (
        len(shape) > _MAX_DIMS
        or not all(isinstance(dim, int) and 0 <= dim < 2**63 for dim in shape)
        or not 0 <= start <= stop
    ):
        raise Refusal(f"{shown!r} in {name} has an impossible shape or place")
    wanted = (math.prod(shape) * _BITS[kind] + 7) // 8
    if stop - start != wanted:
        raise Refusal(f"{shown!r} in {name} needs {wanted} bytes, and takes {stop - start}")
    return start, stop, shown
