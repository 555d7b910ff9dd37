"""Which models a Python model calls, read from its code."""

import pytest

from services.registry.formats.calls import calls

SYNC = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            infer_request = pb_utils.InferenceRequest(
                model_name="addsub", requested_output_names=["OUTPUT0"], inputs=[])
            infer_response = infer_request.exec()
"""
ASYNC = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    async def execute(self, requests):
        for request in requests:
            awaits = []
            for model_name in ["pytorch", "addsub"]:
                infer_request = pb_utils.InferenceRequest(
                    model_name=model_name, requested_output_names=["OUTPUT0"], inputs=[])
                awaits.append(infer_request.async_exec())
"""
FROM_INPUT = """
class TritonPythonModel:
    def execute(self, requests):
        model_name = pb_utils.get_input_tensor_by_name(requests[0], "MODEL_NAME")
        model_name_string = model_name.as_numpy()[0]
        pb_utils.InferenceRequest(model_name=model_name_string, inputs=[])
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (SYNC, [("addsub", 0)]),
        (ASYNC, [("pytorch", 0), ("addsub", 0)]),
        (FROM_INPUT, []),
        ('InferenceRequest(model_name="a", model_version=3)', [("a", 3)]),
        ('InferenceRequest(model_name="a", model_version=-1)', [("a", 0)]),
        ('NAME = "a"\ndef f():\n    pb.InferenceRequest(model_name=NAME)', [("a", 0)]),
        ('class M:\n    N = "a"\n    def f(self): pb.InferenceRequest(model_name=self.N)', []),
        ('self.n = "a"\npb.InferenceRequest(model_name=self.n)', [("a", 0)]),
        ('n: str = "a"\npb.InferenceRequest(model_name=n)', [("a", 0)]),
        ('n = "a" if x else "b"\npb.InferenceRequest(model_name=n)', []),
        ('n = "a"\nn = config["n"]\npb.InferenceRequest(model_name=n)', []),
        ('n = "a"\nn += "b"\npb.InferenceRequest(model_name=n)', []),
        ('n = "a"\ndef f(n): pb.InferenceRequest(model_name=n)', []),
        ('a, n = "ab"\npb.InferenceRequest(model_name=n)', []),
        (
            'if x:\n    n = "a"\nelse:\n    n = "b"\nInferenceRequest(model_name=n)',
            [("a", 0), ("b", 0)],
        ),
        ('[InferenceRequest(model_name=n) for n in ("a", "b")]', [("a", 0), ("b", 0)]),
        ('for n in ("a", b): InferenceRequest(model_name=n)', []),
        ("InferenceRequest(model_name=3)", []),
        ("InferenceRequest(**given)", []),
        ('print("InferenceRequest(model_name=1)")', []),
        ("def broken(:", []),
        ("\0", []),
        ("(" * 1000, []),
        ("-" * 100_000 + "1", []),
    ],
)
def test_constant_names_are_found(code: str, expected: list[tuple[str, int]]) -> None:
    assert list(calls(code)) == expected
