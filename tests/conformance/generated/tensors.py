"""Models of every data type, and of everything that a config can say about tensors and batches."""

# ruff: noqa: E501 -- a model is easier to read in one line

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto, helper

from tests.conformance.generated.model import (
    BATCH,
    DECOUPLED,
    ECHO,
    ONE,
    ONNX,
    PYTHON,
    TYPES,
    Model,
    Parameters,
    graph,
    python,
    values,
)
from tests.support.onnx_models import serialized, tensor_info

# The names that ONNX has for data types, where they differ.
ELEMENTS = {"FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE"}


def identities() -> Iterator[Model]:
    """Return a model for each data type, with and without batches, in fixed and open dimensions."""
    shapes = {"one": ("1", (1,)), "open": ("-1", (5,)), "matrix": ("2, 3", (2, 3))}
    for at, kind in enumerate(TYPES):
        for batch in (0, 8):
            for number, (word, (dims, shape)) in enumerate(shapes.items()):
                config = f"""backend: "python" max_batch_size: {batch}
                    input [{{ name: "IN" data_type: TYPE_{kind} dims: [{dims}] }}]
                    output [{{ name: "OUT" data_type: TYPE_{kind} dims: [{dims}] }}]"""
                yield Model(
                    f"python_{kind.lower()}_{word}_{batch}",
                    config,
                    {"1/model.py": ECHO},
                    {"IN": values(kind, (2, *shape) if batch else shape)},
                    light=at % 4 == number and bool(batch) == bool(at % 2),
                )


def onnx_identities() -> Iterator[Model]:
    """Return a model for each data type, with and without batches."""
    for at, kind in enumerate(TYPES):
        for batch in (0, 8):
            config = f"""{ONNX} max_batch_size: {batch}
                input [{{ name: "IN" data_type: TYPE_{kind} dims: [3] }}]
                output [{{ name: "OUT" data_type: TYPE_{kind} dims: [3] }}]"""
            element = getattr(TensorProto, ELEMENTS.get(kind, kind))
            identity = helper.make_node("Identity", ["IN"], ["OUT"])
            yield Model(
                f"onnx_{kind.lower()}_{batch}",
                config,
                {"1/model.onnx": graph(identity, ["n", 3] if batch else [3], element=element)},
                {"IN": values(kind, (2, 3) if batch else (3,))},
                light=at % 5 == 0 and bool(batch) == bool(at % 2),
            )


def features() -> Iterator[Model]:
    """Return a model for each thing that the config of a Python model can say."""
    yield python("dynamic", "max_batch_size: 8 dynamic_batching { }", light=True, request=BATCH)
    yield python(
        "preferred",
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [2, 4] max_queue_delay_microseconds: 100 }",
        request=BATCH,
    )
    yield python(
        "priorities",
        "max_batch_size: 8 dynamic_batching { priority_levels: 3 default_priority_level: 2 }",
        request=BATCH,
    )
    yield python(
        "queue",
        "max_batch_size: 8 dynamic_batching { default_queue_policy { max_queue_size: 8 timeout_action: REJECT } }",
        request=BATCH,
    )
    yield python(
        "ordered", "max_batch_size: 8 dynamic_batching { preserve_ordering: true }", request=BATCH
    )
    decoupled = f"{PYTHON} model_transaction_policy {{ decoupled: true }}"
    yield Model("decoupled", decoupled, {"1/model.py": DECOUPLED}, decoupled=True, light=True)
    yield Model("decoupled_asked_once", decoupled, {"1/model.py": DECOUPLED})
    yield python("two_instances", "instance_group [{ count: 2 kind: KIND_CPU }]")
    yield python("named_group", 'instance_group [{ name: "mine" count: 1 kind: KIND_CPU }]')
    yield python("parameters", 'parameters { key: "a" value { string_value: "b" } }', light=True)
    yield python("metric_tags", 'metric_tags { key: "team" value: "a" }')
    config = f'{PYTHON} default_model_filename: "code.py"'
    yield Model("other_file", config, {"1/code.py": ECHO})
    yield python(
        "pinned", "optimization { input_pinned_memory { enable: false } priority: PRIORITY_MAX }"
    )
    yield python(
        "warm",
        'model_warmup [{ name: "w" inputs { key: "IN" value { data_type: TYPE_FP32 dims: [1] zero_data: true } } }]',
    )
    yield python(
        "rate_limited", "instance_group [{ count: 1 kind: KIND_CPU rate_limiter { priority: 2 } }]"
    )
    yield python("cached", "response_cache { enable: true }", light=True)
    labelled = (
        'output [{ name: "OUT" data_type: TYPE_FP32 dims: [1] label_filename: "labels.txt" }]'
    )
    config = f'backend: "python" input [{{ name: "IN" data_type: TYPE_FP32 dims: [1] }}] {labelled}'
    yield Model("labels", config, {"1/model.py": ECHO, "labels.txt": "a\nb\n"}, light=True)
    config = """backend: "python" input [
        { name: "IN_A" data_type: TYPE_FP32 dims: [1] },
        { name: "IN_B" data_type: TYPE_INT32 dims: [-1, 2] optional: true }]
        output [{ name: "OUT_A" data_type: TYPE_FP32 dims: [1] },
                { name: "OUT_B" data_type: TYPE_INT32 dims: [-1, 2] }]"""
    pair = {"IN_A": values("FP32", (1,)), "IN_B": values("INT32", (3, 2))}
    yield Model("optional_given", config, {"1/model.py": ECHO}, pair)
    yield Model("optional_left_out", config, {"1/model.py": ECHO}, {"IN_A": pair["IN_A"]})
    config = """backend: "python"
        input [{ name: "IN" data_type: TYPE_FP32 dims: [4] reshape { shape: [2, 2] } }]
        output [{ name: "OUT" data_type: TYPE_FP32 dims: [4] reshape { shape: [2, 2] } }]"""
    four = {"IN": values("FP32", (4,))}
    yield Model("reshape", config, {"1/model.py": ECHO}, four, light=True)
    wrong = {"IN": np.array([3, 4], np.float32)}
    yield Model("wrong_shape", PYTHON, {"1/model.py": ECHO}, wrong)
    yield Model("wrong_type", PYTHON, {"1/model.py": ECHO}, {"IN": values("INT32", (1,))})
    yield Model("wrong_name", PYTHON, {"1/model.py": ECHO}, {"OTHER": values("FP32", (1,))})


def onnx_features() -> Iterator[Model]:
    """Return a model for each thing that the config of an ONNX model can say."""
    negative = helper.make_node("Neg", ["IN"], ["OUT"])
    plain, one = f"{ONNX} {ONE}", {"1/model.onnx": graph(negative, [1])}
    backend = plain.replace('platform: "onnxruntime_onnx"', 'backend: "onnxruntime"')
    yield Model("onnx_backend", backend, one, light=True)
    yield Model(
        "onnx_renamed",
        f'{plain} default_model_filename: "net.onnx"',
        {"1/net.onnx": graph(negative, [1])},
    )
    yield Model("onnx_symbolic", plain, {"1/model.onnx": graph(negative, ["n"])})
    yield Model("onnx_mismatch", plain, {"1/model.onnx": graph(negative, [2])})
    yield Model("onnx_garbage", plain, {"1/model.onnx": b"none"})
    yield Model("onnx_absent", plain, {"1/": ""})
    threads = 'parameters { key: "intra_op_thread_count" value { string_value: "2" } }'
    yield Model("onnx_threads", f"{plain} {threads}", one)
    yield Model("onnx_graph_level", f"{plain} optimization {{ graph {{ level: -1 }} }}", one)
    open_ = ONE.replace("dims: [1]", "dims: [-1]")
    ragged = open_.replace("dims: [-1]", "dims: [-1] allow_ragged_batch: true", 1)
    scattered = """batch_output [{ kind: BATCH_SCATTER_WITH_INPUT_SHAPE
        target_name: "OUT" source_input: "IN" }]"""
    yield Model(
        "onnx_ragged",
        f"{ONNX} max_batch_size: 4 {ragged} {scattered}",
        {"1/model.onnx": graph(negative, ["n"])},
        {"IN": values("FP32", (2, 3))},
        light=True,
    )


def sequences() -> Iterator[Model]:
    """Return models that get controls, states and batch inputs beside what a request carries."""
    started: Parameters = {"sequence_id": 5, "sequence_start": True, "sequence_end": True}
    batching = "sequence_batching { max_sequence_idle_microseconds: 5000000 }"
    code = {"1/model.py": ECHO}
    yield Model("sequence", f"{PYTHON} {batching}", code, parameters=started, light=True)
    yield Model("sequence_without_id", f"{PYTHON} {batching}", code)
    text = {**started, "sequence_id": "a text"}
    yield Model("sequence_by_text", f"{PYTHON} {batching}", code, parameters=text)
    yield Model("no_sequences", PYTHON, code, parameters=started)
    control = """control_input [
        { name: "START" control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }] },
        { name: "READY" control [{ kind: CONTROL_SEQUENCE_READY fp32_false_true: [0, 1] }] }]"""
    float_ = TensorProto.FLOAT
    yield Model(
        "onnx_controls",
        f"{ONNX} {ONE} max_batch_size: 4 sequence_batching {{ {control} }}",
        {
            "1/model.onnx": serialized(
                helper.make_node("Add", ["IN", "START"], ["SUM"]),
                helper.make_node("Mul", ["SUM", "READY"], ["OUT"]),
                inputs=[tensor_info(name, float_, ["n", 1]) for name in ("IN", "START", "READY")],
                outputs=[tensor_info("OUT", float_, ["n", 1])],
            )
        },
        BATCH,
        started,
        light=True,
    )
    state = """state [{ input_name: "BEFORE" output_name: "AFTER" data_type: TYPE_FP32 dims: [1]
        initial_state { name: "zero" data_type: TYPE_FP32 dims: [1] zero_data: true } }]"""
    yield Model(
        "onnx_state",
        f"{ONNX} {ONE} sequence_batching {{ {state} }}",
        {
            "1/model.onnx": serialized(
                helper.make_node("Add", ["IN", "BEFORE"], ["AFTER"]),
                helper.make_node("Identity", ["AFTER"], ["OUT"]),
                inputs=[tensor_info(name, float_, [1]) for name in ("IN", "BEFORE")],
                outputs=[tensor_info(name, float_, [1]) for name in ("OUT", "AFTER")],
            )
        },
        parameters=started,
        light=True,
    )
    counted = """batch_input [{ kind: BATCH_ELEMENT_COUNT target_name: "COUNT"
        data_type: TYPE_FP32 source_input: "IN" }]"""
    yield Model(
        "onnx_batch_input",
        f"""{ONNX} max_batch_size: 4 {counted}
        input [{{ name: "IN" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true }}]
        output [{{ name: "OUT" data_type: TYPE_FP32 dims: [1] }}]""",
        {
            "1/model.onnx": serialized(
                helper.make_node("ReduceSum", ["IN"], ["SUM"], keepdims=0),
                helper.make_node("Unsqueeze", ["COUNT", "AXIS"], ["ROWS"]),
                helper.make_node("Add", ["ROWS", "SUM"], ["OUT"]),
                inputs=[tensor_info("IN", float_, ["all"]), tensor_info("COUNT", float_, ["n"])],
                outputs=[tensor_info("OUT", float_, ["n", 1])],
                initializers={"AXIS": np.array([1])},
            )
        },
        {"IN": values("FP32", (1, 3))},
        light=True,
    )
