"""Tensors on the command line: arrays from `--input NAME=VALUE`, and text from arrays."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from shoal.client.tensors import dtype_of

Array = np.ndarray[Any, Any]

SHOWN_VALUES: Final = 8
SHOWN_TEXT: Final = 200  # characters
# A row of at least this many floating-point numbers is taken for the scores of classes.
SCORES: Final = 20
TOP: Final = 5
_SHOWN_ROWS: Final = 4

_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}


class UnusableInput(ValueError):
    """An `--input` that the model does not accept. The text says what it accepts."""


class InputSpec(NamedTuple):
    """An input, as the model's metadata describe it. A size of -1 in `shape` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


def parse_inputs(texts: Iterable[str], tensors: Mapping[str, InputSpec]) -> dict[str, Array]:
    """Return arrays from texts of the form NAME=VALUE.

    A NAME that is given again adds elements. Raises UnusableInput.
    """
    values: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UnusableInput(f"--input {text!r} is not NAME=VALUE or NAME=FILE.npy")
        if name not in tensors:
            raise UnusableInput(
                f"the model has no input {name!r}; it takes {_listed(tensors.values())}"
            )
        values.setdefault(name, []).append(value)
    return {name: _array(tensors[name], given) for name, given in values.items()}


def _listed(tensors: Iterable[InputSpec]) -> str:
    return ", ".join(map(str, tensors))


def _array(tensor: InputSpec, values: list[str]) -> Array:
    if any(value.endswith(".npy") for value in values):
        if len(values) > 1:
            raise UnusableInput(f"{tensor.name}: a .npy file is the whole tensor, so give it alone")
        return _batched(tensor, _loaded(tensor, Path(values[0])))
    if tensor.datatype == "BYTES":
        elements = np.empty(len(values), dtype=np.object_)
        elements[:] = [_element(tensor, value) for value in values]
        return _fitted(tensor, elements)
    numbers = [text.strip() for value in values for text in value.split(",")]
    return _fitted(tensor, _numbers(tensor, numbers))


# --- files ----------------------------------------------------------------------------------------


def _loaded(tensor: InputSpec, path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UnusableInput(
            f"{tensor.name}: {path} cannot be read: {error.strerror or error}"
        ) from error
    except (ValueError, EOFError) as error:
        raise UnusableInput(f"{tensor.name}: {path} is not a usable .npy file: {error}") from error
    if tensor.datatype == "BYTES":
        return _byte_strings(tensor, path, array)
    dtype = dtype_of(tensor.datatype)
    # A .npy file cannot hold BF16.
    wanted = np.dtype(np.float32) if tensor.datatype == "BF16" else dtype
    if array.dtype.newbyteorder("=") != wanted:
        raise UnusableInput(
            f"{tensor.name}: {path} holds {array.dtype}, but the model takes {tensor.datatype} "
            f"({wanted}): save it with .astype(numpy.{wanted})"
        )
    return array.astype(dtype, copy=False)


def _byte_strings(tensor: InputSpec, path: Path, array: Array) -> Array:
    if array.dtype.kind not in "SU":
        raise UnusableInput(
            f"{tensor.name}: {path} holds {array.dtype}, but the model takes BYTES: save an array "
            "of strings"
        )
    strings = np.empty(array.size, dtype=np.object_)
    strings[:] = [item.encode() if isinstance(item, str) else bytes(item) for item in array.flat]
    return strings.reshape(array.shape)


def _batched(tensor: InputSpec, array: Array) -> Array:
    """Add the batch dimension where the model has one and the array does not."""
    lacks_it = tensor.shape[:1] == (-1,) and array.ndim == len(tensor.shape) - 1
    return array[np.newaxis] if lacks_it else array


# --- values ---------------------------------------------------------------------------------------


def _element(tensor: InputSpec, value: str) -> bytes:
    """Return a text as it stands, or the content of the file for @FILE.

    A text that begins with @ is written with @@.
    """
    if value.startswith("@@") or not value.startswith("@"):
        return value.removeprefix("@").encode("utf-8", "surrogateescape")
    try:
        return Path(value[1:]).read_bytes()
    except OSError as error:
        raise UnusableInput(
            f"{tensor.name}: {value[1:]} cannot be read: {error.strerror}"
        ) from error


def _numbers(tensor: InputSpec, texts: list[str]) -> Array:
    try:
        dtype = dtype_of(tensor.datatype)
    except TypeError as error:
        raise UnusableInput(f"{tensor.name}: {error}") from error
    kind = "f" if tensor.datatype == "BF16" else dtype.kind
    try:
        if kind == "b":
            return np.array([_TRUTH[text.lower()] for text in texts], dtype)
        return np.array([float(text) if kind == "f" else int(text, 0) for text in texts], dtype)
    except (ValueError, KeyError, OverflowError) as error:
        raise UnusableInput(
            f"{tensor.name}: {','.join(texts)!r} is not a list of {tensor.datatype} numbers; give "
            "numbers separated by commas, or NAME=FILE.npy"
        ) from error


def _fitted(tensor: InputSpec, values: Array) -> Array:
    """Give a flat list the model's shape. A single number fills it. Raises UnusableInput."""
    known = int(np.prod([size for size in tensor.shape if size >= 0], dtype=np.int64))
    rest, over = divmod(values.size, known) if known else (0, 0)
    fills = values.size == 1 and known > 1 and tensor.datatype != "BYTES"
    if fills:
        rest, over = 1, 0
    open_sizes = [place for place, size in enumerate(tensor.shape) if size < 0]
    if over or (rest != 1 and not open_sizes):
        raise UnusableInput(f"{values.size} values do not fill {tensor}")
    shape = [size if size >= 0 else 1 for size in tensor.shape]
    if open_sizes:
        shape[open_sizes[-1]] = rest
    return np.full(shape, values[0]) if fills else values.reshape(shape)


# --- out ------------------------------------------------------------------------------------------


def values_json(array: Array) -> list[Any]:
    """Return all values, flat, for JSON: bytes as text, and NaN and infinities as null."""
    array = _native(array)
    if array.dtype.kind == "f":
        return [value if np.isfinite(value) else None for value in array.ravel().tolist()]
    if array.dtype == np.object_:
        return [_text(value) for value in array.flat]
    return list(array.ravel().tolist())


def lines(array: Array) -> list[str]:
    """Return a few lines that show what matters: the best of many scores, else the first values."""
    array = _native(array)
    width = array.shape[-1] if array.ndim else 0
    rows = array.size // width if width else 0
    if array.dtype.kind == "f" and width >= SCORES and 0 < rows <= _SHOWN_ROWS:
        return [_largest(row) for row in array.reshape(rows, width)]
    shown = [_shown(value) for value in array.flat[:SHOWN_VALUES]]
    if array.size > SHOWN_VALUES:
        shown.append(f"… {array.size - SHOWN_VALUES} more")
    return [", ".join(shown)]


def _native(array: Array) -> Array:
    """Return BF16, which numpy itself lacks, as FP32."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _largest(row: Array) -> str:
    best = np.argsort(-row, kind="stable")[:TOP]
    return f"the {TOP} largest: " + ", ".join(f"[{index}] {row[index]:.6g}" for index in best)


def _shown(value: Any) -> str:
    if isinstance(value, bytes | str):
        text = json.dumps(_text(value), ensure_ascii=False)
        return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}…"
    return f"{value:.6g}" if isinstance(value, np.floating) else str(value)


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
