"""The batch inputs of models, with the values of Triton's documentation."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SOURCE = Path(__file__).parents[2] / "deploy" / "triton" / "backends" / "signature.py"


@pytest.fixture(scope="module")
def signature() -> ModuleType:
    spec = importlib.util.spec_from_file_location("backend_signature", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["backend_signature"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "shapes", "values"),
    [
        ("BATCH_ELEMENT_COUNT", [(1, 3), (1, 4), (2, 5)], [3, 4, 10]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [(1, 3), (1, 4), (1, 5)], [3, 7, 12]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", [(1, 3), (1, 4)], [0, 3, 7]),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", [(1, 2), (2, 2), (1, 1)], [0, 0, 0, 0]),
        ("BATCH_ITEM_SHAPE", [(2, 3, 1), (1, 2, 2)], [[3, 1], [3, 1], [2, 2]]),
        ("BATCH_ITEM_SHAPE_FLATTEN", [(2, 3, 1), (1, 2, 2)], [3, 1, 3, 1, 2, 2]),
    ],
)
@pytest.mark.parametrize("data_type", ["TYPE_INT32", "TYPE_FP32"])
def test_batch_inputs(
    signature: ModuleType, kind: str, shapes: list[tuple[int, ...]], values: object, data_type: str
) -> None:
    array = signature.BatchInput(("B",), kind, data_type, "A").array(shapes)
    assert array.dtype == signature.BATCH_TYPES[data_type]
    np.testing.assert_array_equal(array, np.array(values))
