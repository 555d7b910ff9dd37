"""Tensors of Triton's protocol from numpy arrays, and back.

Only this module of the client needs numpy.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from shoal.tensors import pack_elements, unpack_elements

try:
    import numpy as np
except ImportError as error:
    raise ImportError("inference needs numpy: pip install 'shoal[client]'") from error

Array = np.ndarray[Any, Any]

# numpy's kind and size in bytes of each datatype of numbers, except BF16, which numpy lacks.
_KINDS: Final = {
    "BOOL": "b1",
    **{f"UINT{8 * size}": f"u{size}" for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": f"i{size}" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"f{size}" for size in (2, 4, 8)},
}
_DATATYPES: Final = {kind: datatype for datatype, kind in _KINDS.items()}


class Tensor(NamedTuple):
    """A tensor as it is sent. `data` is contiguous and little-endian."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes | Array


def encoded(name: str, value: Any) -> Tensor:
    """Encode an array, or anything that numpy can make an array of.

    Text and bytes become BYTES; Python's numbers become INT64 and FP64, as in numpy. Raises
    TypeError where the protocol has no datatype for the array; `name` is the input's name in it.
    """
    array = value if isinstance(value, np.ndarray) else _array(value)
    datatype = datatype_of(array)
    if datatype is None:
        raise TypeError(f"{name}: Triton's protocol has no datatype for numpy's {array.dtype}")
    if datatype == "BYTES":
        return Tensor("BYTES", array.shape, pack_elements(_bytes_of(name, array)))
    if datatype == "BF16":
        return Tensor("BF16", array.shape, np.ascontiguousarray(array).view(np.uint16))
    little = array.dtype.newbyteorder("<")
    return Tensor(datatype, array.shape, np.ascontiguousarray(array, dtype=little))


def decoded(datatype: str, shape: tuple[int, ...], data: memoryview) -> Array:
    """Decode a tensor to a read-only array.

    The array is a view into `data` where the alignment allows it, else a copy. BYTES become an
    object array of `bytes`. BF16 needs ml_dtypes. Raises ValueError where the data do not fill the
    shape, and TypeError for an unknown datatype.
    """
    if datatype == "BYTES":
        array = np.empty(shape, np.object_)
        elements = list(unpack_elements(data))
        if len(elements) != array.size:
            raise ValueError(f"{len(elements)} elements do not fill the shape {list(shape)}")
        array.reshape(-1)[:] = elements
    else:
        array = _numbers(dtype_of(datatype), data).reshape(shape)
    array.flags.writeable = False
    return array


def datatype_of(array: Array) -> str | None:
    """Return the datatype that an array is sent as, or None where there is none for it."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    if array.dtype.name == "bfloat16":
        return "BF16"
    return _DATATYPES.get(f"{array.dtype.kind}{array.dtype.itemsize}")


def dtype_of(datatype: str) -> "np.dtype[Any]":
    """Return the dtype of an array with this datatype. Raises TypeError for an unknown one."""
    if datatype in _KINDS:
        return np.dtype(f"<{_KINDS[datatype]}")
    if datatype == "BYTES":
        return np.dtype(np.object_)
    if datatype == "BF16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    raise TypeError(f"the datatype {datatype} is not known")


def _array(value: Any) -> Array:
    array = np.asarray(value)
    # numpy's own strings lose the zero bytes at their ends.
    return np.array(value, np.object_) if array.dtype.kind in "SU" else array


def _numbers(dtype: "np.dtype[Any]", data: memoryview) -> Array:
    if not data.nbytes:
        return np.empty(0, dtype)
    array = np.frombuffer(data, dtype)
    return array if array.flags.aligned else array.copy()


def _bytes_of(name: str, array: Array) -> Iterator[bytes | bytearray | memoryview]:
    for element in array.flat:
        if isinstance(element, str):
            yield element.encode()
        elif isinstance(element, bytes | bytearray | memoryview):
            yield element
        else:
            raise TypeError(
                f"{name}: an array of objects must hold bytes or str, and this one holds "
                f"{type(element).__name__}"
            )
