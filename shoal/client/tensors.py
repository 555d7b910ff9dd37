"""Tensors of Triton's protocol from numpy arrays, and back. Only this module needs numpy."""

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

try:
    import numpy as np
except ImportError as error:
    raise ImportError("inference needs numpy: pip install 'shoal[client]'") from error

Array = np.ndarray[Any, Any]

# numpy's kind and size in bytes of each datatype; a BF16 is read and written as two plain bytes.
_KINDS: Final = {
    "BOOL": "b1",
    **{f"UINT{8 * size}": f"u{size}" for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": f"i{size}" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"f{size}" for size in (2, 4, 8)},
}
_DATATYPES: Final = {kind: datatype for datatype, kind in _KINDS.items()}
_LENGTH: Final = struct.Struct("<I")  # before each element of a BYTES tensor


class Tensor(NamedTuple):
    """`data`: contiguous and little-endian, as it stands in raw_input_contents."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes | Array


def encoded(name: str, value: Any) -> Tensor:
    """From an array, or from what numpy makes one of; text and bytes become BYTES.

    Numbers of Python become INT64 and FP64, as numpy has it. Raises TypeError for what the protocol
    has no datatype for.
    """
    array = value if isinstance(value, np.ndarray) else _array(value)
    if array.dtype.kind in "OSU":
        return Tensor("BYTES", array.shape, b"".join(_prefixed(name, array)))
    if array.dtype.name == "bfloat16":
        return Tensor("BF16", array.shape, np.ascontiguousarray(array).view(np.uint16))
    datatype = _DATATYPES.get(f"{array.dtype.kind}{array.dtype.itemsize}")
    if datatype is None:
        raise TypeError(f"{name}: Triton's protocol has no datatype for numpy's {array.dtype}")
    little = array.dtype.newbyteorder("<")
    return Tensor(datatype, array.shape, np.ascontiguousarray(array, dtype=little))


def decoded(datatype: str, shape: tuple[int, ...], data: memoryview) -> Array:
    """A read-only array: a view into `data` where that lies as the processor likes it, else a copy.

    BYTES give an object array of `bytes`; BF16 needs ml_dtypes. Raises ValueError where data and
    shape don't fit together, TypeError for an unknown datatype.
    """
    if datatype == "BYTES":
        array = np.empty(shape, np.object_)
        elements = list(_elements(data))
        if len(elements) != array.size:
            raise ValueError(f"{len(elements)} elements do not fill the shape {list(shape)}")
        array.reshape(-1)[:] = elements
    else:
        array = _numbers(_dtype(datatype), data).reshape(shape)
    array.flags.writeable = False
    return array


def _array(value: Any) -> Array:
    array = np.asarray(value)
    # numpy's own strings lose the zero bytes at their ends.
    return np.array(value, np.object_) if array.dtype.kind in "SU" else array


def _numbers(dtype: "np.dtype[Any]", data: memoryview) -> Array:
    if not data.nbytes:
        return np.empty(0, dtype)
    array = np.frombuffer(data, dtype)
    return array if array.flags.aligned else array.copy()


def _dtype(datatype: str) -> "np.dtype[Any]":
    if datatype in _KINDS:
        return np.dtype(f"<{_KINDS[datatype]}")
    if datatype == "BF16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    raise TypeError(f"the datatype {datatype} is not known")


def _prefixed(name: str, array: Array) -> Iterator[bytes]:
    for element in array.flat:
        if isinstance(element, str):
            element = element.encode()
        elif not isinstance(element, bytes | bytearray | memoryview):
            raise TypeError(
                f"{name}: an array of objects holds bytes or str, this one {type(element).__name__}"
            )
        yield _LENGTH.pack(len(element))
        yield element


def _elements(data: memoryview) -> Iterator[bytes]:
    position = 0
    while position < data.nbytes:
        start = position + _LENGTH.size
        if start > data.nbytes:
            raise ValueError("a BYTES tensor ends in the middle of a length")
        position = start + _LENGTH.unpack_from(data, start - _LENGTH.size)[0]
        if position > data.nbytes:
            raise ValueError("a BYTES tensor ends in the middle of an element")
        yield bytes(data[start:position])
