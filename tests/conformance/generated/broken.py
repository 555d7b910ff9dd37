"""Models that nobody serves, and models of backends that are not there."""

# ruff: noqa: E501 -- a model is easier to read in one line

from collections.abc import Iterator

from tests.conformance.generated.model import ECHO, ONE, PYTHON, Model

CONTROL = '{ name: "S1" control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }] }'


def broken() -> Iterator[Model]:
    """Return models that nobody serves."""
    for name, config, light in (
        ("misnamed", f'name: "other" {PYTHON}', True),
        ("no_backend", ONE, True),
        ("unknown_backend", f'backend: "nothing" {ONE}', True),
        ("unknown_platform", f'platform: "nothing" {ONE}', False),
        ("unknown_field", f"{PYTHON} no_such_field: 1", True),
        ("half", PYTHON[:-9], True),
        ("negative_batch", f"{PYTHON} max_batch_size: -1", False),
        ("no_type", PYTHON.replace("data_type: TYPE_FP32", "", 1), True),
        ("no_dims", PYTHON.replace("dims: [1]", "", 1), False),
        ("zero_dims", PYTHON.replace("dims: [1]", "dims: [0]", 1), False),
        ("bad_dims", PYTHON.replace("dims: [1]", "dims: [-2]", 1), False),
        ("bad_type", PYTHON.replace("TYPE_FP32", "TYPE_FLOAT", 1), False),
        ("no_output_name", PYTHON.replace('name: "OUT"', "", 1), False),
        ("twice", f"{PYTHON} {PYTHON}", False),
        ("two_schedulers", f"{PYTHON} dynamic_batching {{ }} sequence_batching {{ }}", False),
        ("empty_config", "", True),
        ("binary_config", "\x00\x01\x02", False),
        (
            "reshape_unequal",
            PYTHON.replace("dims: [1]", "dims: [4] reshape { shape: [3] }", 1),
            True,
        ),
        (
            "format_without_image",
            PYTHON.replace("dims: [1]", "dims: [1] format: FORMAT_NCHW", 1),
            False,
        ),
        (
            "priority_too_large",
            f"{PYTHON} max_batch_size: 8 dynamic_batching {{ priority_levels: 2 default_priority_level: 3 }}",
            True,
        ),
        (
            "preferred_too_large",
            f"{PYTHON} max_batch_size: 4 dynamic_batching {{ preferred_batch_size: [8] }}",
            False,
        ),
        (
            "preferred_zero",
            f"{PYTHON} max_batch_size: 4 dynamic_batching {{ preferred_batch_size: [0] }}",
            False,
        ),
        (
            "batching_without_batches",
            f"{PYTHON} dynamic_batching {{ preferred_batch_size: [1] }}",
            False,
        ),
        (
            "control_of_no_kind",
            f'{PYTHON} sequence_batching {{ control_input [{{ name: "START" }}] }}',
            False,
        ),
        (
            "control_twice",
            f"{PYTHON} sequence_batching {{ control_input [{CONTROL}, {CONTROL.replace('S1', 'S2')}] }}",
            False,
        ),
        (
            "cached_and_decoupled",
            f"{PYTHON} response_cache {{ enable: true }} model_transaction_policy {{ decoupled: true }}",
            True,
        ),
        (
            "unknown_agent",
            f'{PYTHON} model_repository_agents {{ agents [{{ name: "nothing" }}] }}',
            False,
        ),
        (
            "batch_input_of_nothing",
            f'{PYTHON} max_batch_size: 4 batch_input [{{ kind: BATCH_ELEMENT_COUNT target_name: "C" data_type: TYPE_FP32 source_input: "NONE" }}]',
            False,
        ),
        ("negative_count", f"{PYTHON} instance_group [{{ kind: KIND_CPU count: -1 }}]", False),
        (
            "gpu_that_is_not_there",
            f"{PYTHON} instance_group [{{ kind: KIND_GPU gpus: [7] }}]",
            False,
        ),
        ("platform_python", f'platform: "python" {ONE}', True),
    ):
        yield Model(name, config, {"1/model.py": ECHO}, light=light)
    for name, code, light in (
        ("raises_at_import", "raise ValueError('no')", False),
        ("no_class", "x = 1", False),
        ("no_execute", "class TritonPythonModel: pass", False),
        ("syntax_error", "class TritonPythonModel(", True),
        ("missing_module", "import nothing_like_it", False),
        (
            "raises_at_start",
            "class TritonPythonModel:\n def initialize(self, a): raise ValueError('x')\n def execute(self, r): return []",
            True,
        ),
        (
            "raises_when_asked",
            "class TritonPythonModel:\n def execute(self, r): raise ValueError('x')",
            False,
        ),
        ("answers_too_few", "class TritonPythonModel:\n def execute(self, r): return []", False),
    ):
        yield Model(name, PYTHON, {"1/model.py": code}, light=light)
    passive = f"{PYTHON} instance_group [{{ kind: KIND_CPU passive: true }}]"
    yield Model("passive_group", passive, {"1/model.py": ECHO}, hangs=True)
    yield Model("no_config", None, {"1/model.py": ECHO}, light=True)
    yield Model("no_version", PYTHON, {}, light=True)
    yield Model("empty_version", PYTHON, {"1/": ""}, light=True, hangs=True)
    yield Model("empty_folder", None, {}, light=True)


def backends() -> Iterator[Model]:
    """Return a model for each backend that Triton has; most of them are not installed."""
    for platform, file in (
        *(
            ("tensorflow_savedmodel", "model.savedmodel/"),
            ("tensorflow_graphdef", "model.graphdef"),
        ),
        *(("tensorrt_plan", "model.plan"), ("pytorch_libtorch", "model.pt")),
    ):
        yield Model(
            f"of_{platform}", f'platform: "{platform}" {ONE}', {"1/model.py": "", f"1/{file}": ""}
        )
    for backend, file in (
        *(("tensorflow", "model.savedmodel/"), ("tensorrt", "model.plan"), ("pytorch", "model.pt")),
        *(("openvino", "model.xml"), ("dali", "model.dali"), ("fil", "xgboost.json")),
        *(("vllm", "model.json"), ("tensorrtllm", "rank0.engine"), ("identity", "")),
        *(
            ("repeat", ""),
            ("square", ""),
            ("dlcompiler", "model"),
            ("armnn_tflite", "model.tflite"),
        ),
    ):
        light = backend in ("vllm", "openvino")
        yield Model(f"of_{backend}", f'backend: "{backend}" {ONE}', {f"1/{file}": ""}, light=light)
    # The backend is what follows the first dot of a name.
    yield Model("dotted.dali", ONE, {"1/model.dali": ""}, light=True)
    yield Model("dotted.python", ONE, {"1/model.python": ECHO}, light=True)
    yield Model("dotted.onnxruntime", ONE, {"1/model.onnxruntime": ""})
