"""The questions, and their order."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

# Models that are asked again stay longer. The slowest come first: for five seconds after its start
# the Controller unloads nothing, because Routers that it does not know yet may be using it.
_ORDER: Final = (
    *("vgg19_onnx", "densenet_onnx", "text_stats", "densenet_onnx", "vgg19_onnx"),
    *("zfnet512_onnx", "densenet_onnx", "squeezenet_onnx", "zfnet512_onnx"),
    *("shufflenet_onnx", "resnet50_onnx", "inception_v1_onnx", "resnet50_onnx"),
    *("inception_v2_onnx", "alexnet_onnx", "resnet50_onnx"),
    *("magika", "multiplier", "multiplier:1", "multiplier:2"),
    *("file_type", "file_type", "file_features", "file_label", "magika"),
    "densenet_onnx",
)
# Ensembles: their parts are loaded together, and each takes a place.
_PARTS: Final = {"file_type": 3}
_SEED: Final = 2


class NoExamples(Exception):
    """There are no example inputs or models here; the text says how to get them."""


class Example(Protocol):
    """A request with its right answer, as model_repository/examples.py has it."""

    model: str
    version: int
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]

    def mismatches(self, outputs: Mapping[str, Array]) -> list[str]: ...


@dataclass(frozen=True)
class Question:
    """A request. `name` is MODEL, or MODEL:VERSION if the client names the version itself."""

    name: str
    example: Example

    @property
    def model(self) -> str:
        return self.example.model

    @property
    def version(self) -> str:
        """Return the version for a client of Triton; "" is the default."""
        return self.name.partition(":")[2]


@dataclass(frozen=True)
class Script:
    """The questions, the folder of the models, and the number of models in it."""

    repository: Path
    models: int
    questions: Sequence[Question]


def read(count: int | None, places: int) -> Script:
    """Return the first `count` questions, or all; beyond the last, questions are random.

    `places` is how many models fit; ensembles with more parts are left out. Raises NoExamples.
    """
    try:
        examples = importlib.import_module("model_repository.examples")
        repository = Path(str(examples.__file__)).parent
        order = _drawn([name for name in _ORDER if _PARTS.get(name, 0) <= places], count)
        known = {name: _question(name, examples.EXAMPLES) for name in dict.fromkeys(order)}
    except ImportError as error:
        raise NoExamples(
            f"the example inputs need a checkout of Shoal and its development environment "
            f"({error.name} is missing): run `make setup` there."
        ) from error
    missing = [name for name in examples.LIGHT if not (repository / name / "1/model.onnx").exists()]
    if missing:
        raise NoExamples(f"the files of {', '.join(missing)} are not there: run `make models`.")
    models = {model for model, _ in examples.EXAMPLES}
    return Script(repository, len(models), [known[name] for name in order])


def _drawn(order: list[str], count: int | None) -> list[str]:
    if count is None or count <= len(order):
        return order[:count]
    names = list(dict.fromkeys(order))
    draws = np.random.default_rng(_SEED).choice(len(names), count - len(order))
    return order + [names[draw] for draw in draws]


def _question(name: str, examples: Mapping[tuple[str, int], Any]) -> Question:
    model, _, version = name.partition(":")
    newest = max(number for known, number in examples if known == model)
    return Question(name, examples[model, int(version or newest)]())
