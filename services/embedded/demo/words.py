"""Tensors in a few words, for what was asked and what was answered."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from services.embedded.demo.script import Array

Arrays = Mapping[str, Array]

_SHOWN: Final = 8  # values
_QUOTED: Final = 12  # characters
_BYTES: Final = 256  # a file's features are its bytes; values from this one up are padding


def asked(inputs: Arrays) -> str:
    """Describe the first input by its type and shape."""
    array = next(iter(inputs.values()))
    if array.dtype == np.object_:
        more = f" +{array.size - 1}" if array.size > 1 else ""
        return _quoted(array.flat[0]) + more
    if array.dtype.kind == "f" and array.ndim >= 3:
        return f"image {_shape(array)}"
    return _some(array)


def answered(model: str, outputs: Arrays, repository: Path) -> str:
    """Describe the outputs for people. The models' labels are in `repository`."""
    if describe := _DESCRIBED.get(model):
        return describe(outputs)
    array = next(iter(outputs.values()))
    if array.dtype.kind == "f" and array.size > _SHOWN:
        return _best(array.ravel(), _labels(repository / model, array.size))
    return _some(array)


def _labelled(outputs: Arrays) -> str:
    return f"{_text(outputs['LABEL'].flat[0])} {_percent(outputs['SCORE'].flat[0])}"


def _longest(outputs: Arrays) -> str:
    return f"longest word {_quoted(outputs['LONGEST_WORD'].flat[0])}"


_DESCRIBED: Final[Mapping[str, Callable[[Arrays], str]]] = {
    "file_type": _labelled,
    "file_label": _labelled,
    "text_stats": _longest,
}


def _best(scores: Array, labels: list[str]) -> str:
    """Describe the best score. The light models' constant weights make all scores the same."""
    if np.ptp(scores) == 0:
        return f"{scores.size} scores of {scores[0]:.3g}"
    best = int(scores.argmax())
    return f"{labels[best] if labels else f'class {best}'} {_percent(scores[best])}"


def _labels(folder: Path, count: int) -> list[str]:
    """Return a label for each score, or none."""
    for path in sorted(folder.glob("*labels.txt")):
        if len(lines := path.read_text().splitlines()) == count:
            return lines
    return []


def _some(array: Array) -> str:
    if array.size <= _SHOWN:
        return "[" + ", ".join(f"{value:.6g}".replace("e+0", "e") for value in array.flat) + "]"
    if array.dtype.kind == "i":
        start = bytes(value for value in array.ravel()[: 2 * _QUOTED].tolist() if value < _BYTES)
        return f"{_quoted(start)} as ints"
    return f"{array.size} scores"


def _quoted(value: bytes) -> str:
    first = _text(value).partition("\n")[0]
    shown = first[:_QUOTED].strip()
    return f"`{shown}…`" if len(shown) < len(_text(value).strip()) else f"`{shown}`"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _shape(array: Array) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"
