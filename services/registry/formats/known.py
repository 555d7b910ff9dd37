"""The formats that are known: what the entry points of `shoal.formats` name, in their order."""

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from services.registry.formats.format import Format

GROUP: Final = "shoal.formats"

# What says most about a whole folder first; then what a server opens as it is, in Triton's order;
# then what must be converted. Any other format comes before all of these.
ORDER: Final = (
    *("mlflow", "sentence-transformers", "transformers", "ensemble", "python"),
    *("savedmodel", "tensorrt-plan", "onnx", "openvino", "torchscript"),
    *("state-dict", "torch-export", "sklearn-skops", "xgboost", "lightgbm", "sklearn-pickle"),
)

_PROJECT: Final = Path(__file__).resolve().parents[3] / "pyproject.toml"


@cache
def formats() -> tuple[Format, ...]:
    """Load all formats, the most telling first. Raises what importing one raises."""
    found: list[Format] = [point.load() for point in _points()]
    return tuple(sorted(found, key=lambda one: (_place(one.name), one.name)))


def named(name: str) -> Format:
    """Return the format of a name. Raises KeyError."""
    return {one.name: one for one in formats()}[name]


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else -1


def _points() -> Iterator[EntryPoint]:
    """Yield every entry point of the group, each name once.

    A checkout that runs in place has Shoal's own in its pyproject.toml, which counts over the
    metadata of an installation that may be older.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    if _PROJECT.is_file():
        project = tomllib.loads(_PROJECT.read_text()).get("project", {})
        if project.get("name") == "shoal":
            own = project.get("entry-points", {}).get(GROUP, {})
            points |= {name: EntryPoint(name, value, GROUP) for name, value in own.items()}
    yield from points.values()
