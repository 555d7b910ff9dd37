"""A request with its known right answer for every model version here.

Needs numpy, and for the image models the `onnx` package, which records their answers: its light
models have constant weights and are tested with an input that counts evenly from 0 to 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Example:
    """BYTES tensors are object arrays of `bytes`; the others have the model's own dtype."""

    model: str
    version: int
    inputs: Arrays
    expected: Arrays
    rtol: float = 0.0
    atol: float = 0.0

    def mismatches(self, outputs: Arrays) -> list[str]:
        """What is wrong with an answer, in words; empty when all is right."""
        return [
            f"{self.model} version {self.version}, {name}: {complaint}"
            for name, wanted in self.expected.items()
            if (complaint := self._compare(outputs.get(name), wanted))
        ]

    def _compare(self, found: np.ndarray | None, wanted: np.ndarray) -> str | None:
        if found is None:
            return "missing"
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            return (
                f"{found.dtype} {list(found.shape)} instead of {wanted.dtype} {list(wanted.shape)}"
            )
        if wanted.dtype == np.object_:
            return None if np.array_equal(found, wanted) else f"{found} instead of {wanted}"
        if np.allclose(found, wanted, rtol=self.rtol, atol=self.atol):
            return None
        return f"differs by up to {np.abs(found - wanted).max()}"


@dataclass(frozen=True)
class Light:
    """One of onnx's light models: its file, its tensors, and how the config reshapes them."""

    stem: str
    image: str
    scores: str
    image_shape: tuple[int, ...] = (1, 3, 224, 224)
    scores_shape: tuple[int, ...] = (1, 1000)


LIGHT = {
    "alexnet_onnx": Light("bvlc_alexnet", "data_0", "prob_1"),
    "densenet_onnx": Light("densenet121", "data_0", "fc6_1", (3, 224, 224), (1000,)),
    "inception_v1_onnx": Light("inception_v1", "data_0", "prob_1"),
    "inception_v2_onnx": Light("inception_v2", "data_0", "prob_1"),
    "resnet50_onnx": Light("resnet50", "gpu_0/data_0", "gpu_0/softmax_1"),
    "shufflenet_onnx": Light("shufflenet", "gpu_0/data_0", "gpu_0/softmax_1"),
    "squeezenet_onnx": Light("squeezenet", "data_0", "softmaxout_1", scores_shape=(1000,)),
    "vgg19_onnx": Light("vgg19", "data_0", "prob_1"),
    "zfnet512_onnx": Light("zfnet512", "gpu_0/data_0", "gpu_0/softmax_1"),
}

PYTHON_SOURCE = b"import os\nprint(os.name)\n"
# What the `magika` package itself says about PYTHON_SOURCE.
PYTHON_LABEL, PYTHON_SCORE = b"python", 0.92827556
LABELS = Path(__file__).resolve().parent / "magika" / "labels.txt"


def light(model: str) -> Example:
    known = LIGHT[model]
    size = int(np.prod(known.image_shape))
    image = (np.arange(size).reshape(known.image_shape) / size).astype(np.float32)
    return Example(
        model,
        1,
        inputs={known.image: image},
        expected={known.scores: recorded_output(known.stem).reshape(known.scores_shape)},
        rtol=1e-3,
        atol=1e-6,
    )


def recorded_output(stem: str) -> np.ndarray:
    """FP32: what the onnx package expects its light model to answer."""
    import onnx  # only here, for it takes a while

    data = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    tensor = onnx.TensorProto.FromString((data / f"light_{stem}_output_0.pb").read_bytes())
    return np.array(onnx.numpy_helper.to_array(tensor))


def multiplier(version: int, factor: float) -> Example:
    numbers = np.array([[0.0, 1.5, -2.0, 1e6]], dtype=np.float32)
    return Example(
        "multiplier",
        version,
        inputs={"INPUT": numbers},
        expected={"OUTPUT": numbers * np.float32(factor)},
    )


def text_stats() -> Example:
    texts = ["a shoal of fish\nswims as one", "été", ""]
    return Example(
        "text_stats",
        1,
        inputs={"TEXT": byte_strings(*(text.encode() for text in texts))},
        expected={
            "COUNTS": np.array([[28, 7, 2], [3, 1, 1], [0, 0, 0]], dtype=np.int64),
            "ENTROPY": np.array([3.4241743, 1.5219281, 0.0], dtype=np.float32),
            "LONGEST_WORD": byte_strings(b"shoal", "été".encode(), b""),
        },
        rtol=1e-5,
    )


def file_features() -> Example:
    return Example(
        "file_features",
        1,
        inputs={"CONTENT": byte_strings(PYTHON_SOURCE).reshape(1, 1)},
        expected={"FEATURES": python_features()},
    )


def magika() -> Example:
    return Example(
        "magika",
        1,
        inputs={"bytes": python_features()},
        expected={"target_label": python_scores()},
        # Shares of the labels beside the best one, which aren't recorded, together 0.07.
        atol=0.05,
    )


def file_label() -> Example:
    return Example(
        "file_label",
        1,
        inputs={"SCORES": python_scores()},
        expected={
            "LABEL": byte_strings(PYTHON_LABEL).reshape(1, 1),
            "SCORE": np.array([[PYTHON_SCORE]], dtype=np.float32),
        },
    )


def file_type() -> Example:
    return Example(
        "file_type",
        1,
        inputs={"CONTENT": byte_strings(PYTHON_SOURCE).reshape(1, 1)},
        expected={
            "LABEL": byte_strings(PYTHON_LABEL).reshape(1, 1),
            "SCORE": np.array([[PYTHON_SCORE]], dtype=np.float32),
        },
        # onnxruntime itself answers this model's batches of several by up to 0.00052 otherwise.
        atol=1e-3,
    )


def python_features() -> np.ndarray:
    """INT32 [1, 2048]: PYTHON_SOURCE from the left and from the right, padded with 256."""
    row = np.full((1, 2048), 256, dtype=np.int32)
    start, end = PYTHON_SOURCE.lstrip(), PYTHON_SOURCE.rstrip()
    row[0, : len(start)] = list(start)
    row[0, -len(end) :] = list(end)
    return row


def python_scores() -> np.ndarray:
    """FP32 [1, 214]: all of the score on `python`."""
    labels = LABELS.read_bytes().split()
    scores = np.zeros((1, len(labels)), dtype=np.float32)
    scores[0, labels.index(PYTHON_LABEL)] = PYTHON_SCORE
    return scores


def byte_strings(*items: bytes) -> np.ndarray:
    """BYTES [n]."""
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array


EXAMPLES: dict[tuple[str, int], Callable[[], Example]] = {
    **{(model, 1): partial(light, model) for model in LIGHT},
    ("file_features", 1): file_features,
    ("file_label", 1): file_label,
    ("file_type", 1): file_type,
    ("magika", 1): magika,
    ("multiplier", 1): partial(multiplier, 1, 2.0),
    ("multiplier", 2): partial(multiplier, 2, 10.0),
    ("text_stats", 1): text_stats,
}


def example(model: str, version: int = 1) -> Example:
    """The example of one model version; KeyError when there is none."""
    return EXAMPLES[model, version]()


def examples() -> list[Example]:
    """One for every model version of this repository, ensembles included."""
    return [make() for make in EXAMPLES.values()]
