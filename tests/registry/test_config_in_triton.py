"""What is refused here is what a real Triton refuses, and for the same reason."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tritonclient.utils import InferenceServerException

from services.registry.artifacts.scan import open_source, scan_version
from services.registry.formats.ensembles import fitted
from services.registry.formats.refusal import Unservable
from tests.support.registry import TENSORS
from tests.support.triton_direct import DirectTriton, triton_direct

pytestmark = pytest.mark.triton

BATCHED: Final = f"max_batch_size: 4\n{TENSORS}"


def tensor(extra: str, dims: str = "[ 1 ]", kind: str = "input") -> str:
    """A model whose input, or output, is an unusual one."""
    entry = f'{{ name: "X" data_type: TYPE_FP32 dims: {dims} {extra} }}'
    other = "output" if kind == "input" else "input"
    return f'{kind} {entry}\n{other} {{ name: "Y" data_type: TYPE_FP32 dims: [ 1 ] }}'


def reshape(dims: str, shape: str, kind: str = "input") -> str:
    return tensor(f"reshape {{ shape: {shape} }}", dims, kind)


def sequences(*said: str) -> str:
    return f"{BATCHED} sequence_batching {{ {' '.join(said)} }}"


def control(name: str, kind: str, said: str = "int32_false_true: [ 0, 1 ]") -> str:
    return f'control_input {{ name: "{name}" control {{ kind: CONTROL_SEQUENCE_{kind} {said} }} }}'


def state(said: str, dims: str = "[ 2 ]") -> str:
    return sequences(
        f'state {{ input_name: "I" output_name: "O" data_type: TYPE_FP32 dims: {dims} {said} }}'
    )


def initial(said: str, kind: str = "TYPE_FP32", dims: str = "[ 2 ]") -> str:
    return f"initial_state {{ data_type: {kind} dims: {dims} {said} }}"


def batching(said: str) -> str:
    return f"{BATCHED} dynamic_batching {{ {said} }}"


def batch_input(said: str, kind: str = "BATCH_ELEMENT_COUNT") -> str:
    return f'{BATCHED} batch_input {{ kind: {kind} target_name: "B" data_type: TYPE_FP32 {said} }}'


def batch_output(said: str) -> str:
    return f"{BATCHED} batch_output {{ kind: BATCH_SCATTER_WITH_INPUT_SHAPE {said} }}"


def instances(said: str) -> str:
    return f"{TENSORS} instance_group [ {{ {said} }} ]"


def warmup(said: str, batch: int = 1) -> str:
    value = f'inputs {{ key: "IN" value {{ {said} }} }}' if said else ""
    return f'{BATCHED} model_warmup {{ name: "w" batch_size: {batch} {value} }}'


def step(model: str, source: str, target: str, ends: tuple[str, str] = ("IN", "OUT")) -> str:
    return (
        f'step {{ model_name: "{model}" model_version: -1 '
        f'input_map {{ key: "{ends[0]}" value: "{source}" }} '
        f'output_map {{ key: "{ends[1]}" value: "{target}" }} }}'
    )


def ensemble(*steps: str, tensors: str = TENSORS, said: str = "") -> str:
    steps_text = f"ensemble_scheduling {{ {' '.join(steps)} }}" if steps else ""
    return f'platform: "ensemble" {tensors} {steps_text} {said}'


LEVELS: Final = "priority_levels: 3 default_priority_level: 1"
DELAY: Final = "{ timeout_action: DELAY default_timeout_microseconds: 1 }"

# Configs that a Triton does not load. Models not called ensemble_… have backend: "python".
BROKEN: Final[dict[str, str]] = {
    "negative_batch": f"{TENSORS} max_batch_size: -1",
    "pair": f'{TENSORS} backend: "onnxruntime" platform: "tensorrt_plan"',
    "platform_python": f'{TENSORS} platform: "python"',
    # Tensors.
    "no_name": tensor("").replace('name: "X"', ""),
    "no_type": tensor("").replace("data_type: TYPE_FP32", "", 1),
    "no_dims": tensor("", "[ ]"),
    "zero_dim": tensor("", "[ 0 ]"),
    "minus_two": tensor("", "[ -2 ]", "output"),
    "reshape_count": reshape("[ 4 ]", "[ 3 ]"),
    "reshape_output": reshape("[ 4 ]", "[ 3 ]", "output"),
    "reshape_variable": reshape("[ -1 ]", "[ 3 ]"),
    "reshape_fixed": reshape("[ 3 ]", "[ -1 ]"),
    "reshape_numbers": reshape("[ -1, -1 ]", "[ -1 ]"),
    "reshape_runs": reshape("[ 2, -1, 4 ]", "[ 4, -1, 2 ]"),
    "reshape_zero": reshape("[ 1 ]", "[ 0 ]"),
    "reshape_empty": reshape("[ 1 ]", "[ ]"),
    "reshape_empty_batched": "max_batch_size: 4 " + reshape("[ 2 ]", "[ ]"),
    "format_nhwc": tensor("format: FORMAT_NHWC", "[ 3, 4 ]"),
    "format_nchw": tensor("format: FORMAT_NCHW", "[ 1, 3, 4, 4 ]"),
    "shape_tensor": tensor("is_shape_tensor: true"),
    "non_linear": tensor("is_non_linear_format_io: true", "[ 1, 2, 3 ]"),
    # Batching.
    "preferred_large": batching("preferred_batch_size: [ 2, 8 ]"),
    "preferred_zero": batching("preferred_batch_size: 0"),
    "preferred_unbatched": f"{TENSORS} dynamic_batching {{ preferred_batch_size: 2 }}",
    "priority_none": batching("priority_levels: 3"),
    "priority_high": batching("priority_levels: 3 default_priority_level: 4"),
    "priority_policy_zero": batching(f"{LEVELS} priority_queue_policy {{ key: 0 value {{ }} }}"),
    "priority_policy_high": batching(f"{LEVELS} priority_queue_policy {{ key: 4 value {{ }} }}"),
    "ordering_levels": batching(f"{LEVELS} preserve_ordering: true"),
    "ordering_delay": batching(f"preserve_ordering: true default_queue_policy {DELAY}"),
    "ordering_delay_one": batching(
        "priority_levels: 1 default_priority_level: 1 preserve_ordering: true "
        f"priority_queue_policy {{ key: 1 value {DELAY} }}"
    ),
    "batch_input_no_source": batch_input(""),
    "batch_input_two_sources": batch_input('source_input: [ "IN", "IN" ]', "BATCH_ITEM_SHAPE"),
    "batch_input_unknown": batch_input('source_input: "NO"'),
    "batch_input_type": batch_input('source_input: "IN"').replace(
        "data_type: TYPE_FP32 source", "data_type: TYPE_INT64 source"
    ),
    "batch_output_no_source": batch_output('target_name: "OUT"'),
    "batch_output_unknown_source": batch_output('target_name: "OUT" source_input: "NO"'),
    "batch_output_unknown": batch_output('target_name: "NO" source_input: "IN"'),
    "batch_output_twice": batch_output('target_name: [ "OUT", "OUT" ] source_input: "IN"'),
    # Sequences.
    "cache_sequences": sequences() + " response_cache { enable: true }",
    "cache_decoupled": f"{TENSORS} response_cache {{ enable: true }} "
    "model_transaction_policy { decoupled: true }",
    "control_no_name": sequences(control("", "START")),
    "control_twice": sequences(control("S", "START"), control("S", "END")),
    "control_two_starts": sequences(control("S", "START"), control("T", "START")),
    "control_two_ids": sequences(
        control("S", "CORRID", "data_type: TYPE_UINT64"),
        control("T", "CORRID", "data_type: TYPE_UINT64"),
    ),
    "control_no_value": sequences(control("S", "READY", "")),
    "control_two_values": sequences(
        control("S", "END", "int32_false_true: [ 0, 1 ] bool_false_true: [ false, true ]")
    ),
    "control_three": sequences(control("S", "START", "fp32_false_true: [ 0, 1, 2 ]")),
    "control_one": sequences(control("S", "START", "bool_false_true: true")),
    "id_type": sequences(control("S", "CORRID", "data_type: TYPE_FP32")),
    "id_no_type": sequences(control("S", "CORRID", "")),
    "id_value": sequences(control("S", "CORRID", "data_type: TYPE_INT32 int32_false_true: 1")),
    "oldest_large": sequences("oldest { preferred_batch_size: 8 }"),
    "oldest_zero": sequences("oldest { preferred_batch_size: 0 }"),
    "direct_utilization": sequences("direct { minimum_slot_utilization: 1.5 }"),
    # Instances.
    "cpu_gpus": instances("kind: KIND_CPU gpus: 0"),
    "model_gpus": instances("kind: KIND_MODEL gpus: [ 0, 1 ]"),
    "profile": instances('kind: KIND_CPU profile: "0"'),
    # Others.
    "no_version": f"{TENSORS} version_policy {{ specific {{ versions: 5 }} }}",
    "latest_none": f"{TENSORS} version_policy {{ latest {{ }} }}",
    "no_label_file": TENSORS.replace('"OUT"', '"OUT" label_filename: "no.txt"'),
    "control_character": f"{TENSORS}\x01",
    "byte_order_mark": f"\ufeff{TENSORS}",
    "unknown_field": f"{TENSORS} unknown: 1",
    # Ensembles.
    "ensemble_no_steps": ensemble(),
    "ensemble_empty": ensemble(said="ensemble_scheduling { }"),
    "ensemble_backend": ensemble(step("part", "IN", "OUT"), said='backend: "python"'),
    "ensemble_platform": ensemble(step("part", "IN", "OUT")).replace(
        "ensemble", "tensorrt_plan", 1
    ),
    "ensemble_instances": ensemble(step("part", "IN", "OUT"), said="instance_group [ { } ]"),
    "ensemble_optimization": ensemble(step("part", "IN", "OUT"), said="optimization { }"),
    "ensemble_warmup": ensemble(step("part", "IN", "OUT"), said="model_warmup { batch_size: 1 }"),
    "ensemble_no_model": ensemble(step("", "IN", "OUT")),
    "ensemble_no_input_map": ensemble(
        'step { model_name: "part" output_map { key: "OUT" value: "OUT" } }'
    ),
    "ensemble_no_output_map": ensemble(
        'step { model_name: "part" input_map { key: "IN" value: "IN" } }'
    ),
    "ensemble_written_twice": ensemble(step("part", "IN", "OUT"), step("part", "IN", "OUT")),
    "ensemble_unused_input": ensemble(step("part", "OTHER", "OUT")),
    "ensemble_unused_output": ensemble(step("part", "IN", "OTHER")),
    "ensemble_unused_tensor": ensemble(step("part", "IN", "OUT"), step("part", "IN", "T")),
    "ensemble_unconnected": ensemble(step("part", "T", "OUT"), step("part", "IN", "U")),
    "ensemble_circle": ensemble(
        step("part", "IN", "U"), step("part", "T", "OUT"), step("part", "OUT", "T")
    ),
    "ensemble_batch": ensemble(step("part", "IN", "OUT"), said="max_batch_size: 8"),
    "ensemble_type": ensemble(
        step("part", "IN", "OUT"), tensors=TENSORS.replace("TYPE_FP32", "TYPE_INT32", 1)
    ),
    "ensemble_shape": ensemble(
        step("part", "IN", "OUT"), tensors=TENSORS.replace("dims: [ 1 ]", "dims: [ 3, 4 ]", 1)
    ),
    "ensemble_wrong_input": ensemble(step("part", "IN", "OUT", ("NO", "OUT"))),
    "ensemble_wrong_output": ensemble(step("part", "IN", "OUT", ("IN", "NO"))),
    "ensemble_unmapped": ensemble(step("two", "IN", "OUT", ("X", "OUT"))),
    "ensemble_two_origins": ensemble(
        step("streams", "IN", "T"),
        step("streams", "IN", "U"),
        'step { model_name: "two" model_version: -1 input_map { key: "X" value: "T" } '
        'input_map { key: "Y" value: "U" } output_map { key: "OUT" value: "OUT" } }',
    ),
}

# Triton's reason has a path in it, or nothing, or is misleading.
OWN_WORDS: Final = {
    *("pair", "platform_python", "profile", "no_label_file", "no_version", "latest_none"),
    *("ensemble_two_origins", "control_character", "byte_order_mark", "unknown_field"),
}

# Configs that a Triton loads as they are.
GOOD: Final[dict[str, str]] = {
    "good_reshape": "max_batch_size: 4 " + reshape("[ 1 ]", "[ ]"),
    "good_reshape_runs": reshape("[ 2, 4, -1, 6 ]", "[ 8, -1, 1, 6 ]"),
    "good_format": tensor("format: FORMAT_NHWC", "[ 4, 4, 3 ]"),
    "good_batching": batching(
        f"preferred_batch_size: [ 2, 4 ] {LEVELS} priority_queue_policy {{ key: 3 value {DELAY} }}"
    ),
    "good_batching_alone": f"{TENSORS} dynamic_batching {{ }}",
    "good_ordering": batching("preserve_ordering: true"),
    "good_batch_input": batch_input('source_input: "IN"', "BATCH_ITEM_SHAPE_FLATTEN"),
    "good_batch_output": batch_output('target_name: "OUT" source_input: "IN"'),
    "good_sequences": sequences(
        control("S", "START"),
        control("E", "END", "fp32_false_true: [ 0, 1 ]"),
        control("R", "READY", "bool_false_true: [ false, true ]"),
        control("C", "CORRID", "data_type: TYPE_STRING"),
        "oldest { max_candidate_sequences: 2 preferred_batch_size: 4 }",
    ),
    "good_state": state(initial('zero_data: true name: "a"')),
    "good_instances": instances("count: 2 kind: KIND_CPU") + " instance_group { passive: true }",
    "good_negative_count": instances("count: -1 kind: KIND_CPU"),
    "good_cache": f"{TENSORS} response_cache {{ enable: true }}",
    "good_policy": f"{TENSORS} version_policy {{ specific {{ versions: [ 1, 5 ] }} }}",
    "good_same_names": tensor("") + tensor(""),
    "good_comment": f"{TENSORS} # caf\udce9 \udcc4\udca3",
    "good_platform": f'{TENSORS} platform: "anything"',
    "_good": TENSORS,
    "go..od": TENSORS,
    "good+": TENSORS,
    "+": TENSORS,
    "good@1": TENSORS,
    "good" + "x" * 251: TENSORS,
    "ensemble_good": ensemble(step("part", "IN", "T"), step("part", "T", "OUT")),
    "ensemble_batched": ensemble(step("part", "IN", "OUT"), said="max_batch_size: 4"),
}

PARTS: Final[dict[str, str]] = {
    "part": BATCHED,
    "two": f'input {{ name: "Y" data_type: TYPE_FP32 dims: [ 1 ] }} {BATCHED.replace("IN", "X")}',
    "streams": f"{BATCHED} model_transaction_policy {{ decoupled: true }}",
}

CODE: Final = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    folder = tmp_path_factory.mktemp("triton")
    repository = folder / "repository"
    for name, text in {**PARTS, **BROKEN, **GOOD}.items():
        write(repository / name, text)
    with triton_direct(folder, repository) as running:
        yield running


def write(folder: Path, text: str) -> None:
    for sub, file, content in (("1", "model.py", CODE), ("warmup", "data", "1234")):
        (folder / sub).mkdir(parents=True)
        (folder / sub / file).write_text(content)
    if not re.search(r"backend:|platform:", text) or folder.name == "good_platform":
        text = f'backend: "python"\n{text}'
    (folder / "config.pbtxt").write_bytes(text.encode(errors="surrogateescape"))


def registered(folder: Path) -> bytes:
    """Return the config that is served. Raises Unservable."""
    scan = scan_version(open_source(folder, folder.name), 1, "KIND_CPU")
    if scan.problem:
        raise Unservable(scan.problem)
    parts = [registered(folder.parent / part.model) for part in scan.parts]
    return fitted(scan.config, parts) if scan.ensemble else scan.config


@pytest.mark.parametrize("name", BROKEN)
def test_what_triton_does_not_load_is_refused(server: DirectTriton, name: str) -> None:
    (repository,) = server.spec.repositories
    with pytest.raises(Unservable) as refused:
        registered(repository / name)
    begin = server.log.stat().st_size
    with pytest.raises(InferenceServerException) as failed:
        server.load(name)
    if name not in OWN_WORDS:
        log = server.log.read_bytes()[begin:].decode(errors="replace")
        assert str(refused.value) in f"{failed.value}\n{log}".replace(f" for {name}", "")


# Configs that a Triton refuses only once the model's process runs, and on which it may crash.
FATAL: Final[dict[str, tuple[str, str]]] = {
    "agents": (
        f"{TENSORS} model_repository_agents {{ }}",
        "model_repository_agents names no agent",
    ),
    "agent": (
        f"{TENSORS} model_repository_agents {{ agents {{ }} }}",
        "model_repository_agents names no agent",
    ),
    "two": (
        state(2 * initial('zero_data: true name: "a"')),
        "initial_state field for state input 'I' must contain exactly one or zero element",
    ),
    "type": (
        state(initial('zero_data: true name: "a"', "TYPE_INT32")),
        "The data type used for 'initial_state' field of state 'I' does not match",
    ),
    "no_name": (
        state(initial("zero_data: true")),
        "Field 'name' must be set when using initial_state for state input 'I'.",
    ),
    "no_data": (
        state(initial('name: "a"')),
        "initial_state setting expects state'I' to have state_data set",
    ),
    "variable": (
        state(initial('zero_data: true name: "a"', dims="[ -1 ]"), "[ -1 ]"),
        "'initial_state' field for state input name 'I' contains variable dimensions.",
    ),
    "dims": (
        state(initial('zero_data: true name: "a"', dims="[ 3 ]")),
        "'initial_state' dim for input name 'I' doesn't match 'state' dim description. 3 != 2",
    ),
    "rank": (
        state(initial('zero_data: true name: "a"', dims="[ 2, 1 ]")),
        "Number of dimensions in 'initial_state' doesn't match",
    ),
    "warmup_missing": (warmup(""), "model_warmup 'w' lacks the required input 'IN'"),
    "warmup_no_data": (
        warmup("data_type: TYPE_FP32 dims: 1"),
        "warmup setting expects input 'IN' to have input_data_type set",
    ),
    "warmup_variable": (
        warmup("data_type: TYPE_FP32 dims: -1 zero_data: true"),
        "warmup setting expects all variable-size dimensions are specified for input 'IN'",
    ),
    "warmup_type": (
        warmup("data_type: TYPE_INT32 dims: 1 zero_data: true"),
        "model_warmup input 'IN' data-type is 'INT32', but the model expects 'FP32'",
    ),
    "warmup_shape": (
        warmup("data_type: TYPE_FP32 dims: 5 zero_data: true"),
        "model_warmup input 'IN' has shape [5], the config says [1]",
    ),
    "warmup_batch": (
        warmup("data_type: TYPE_FP32 dims: 1 zero_data: true", batch=8),
        "model_warmup 'w' has batch size 8, max allowed is 4",
    ),
    "warmup_no_file": (
        warmup('data_type: TYPE_FP32 dims: 1 input_data_file: "no"'),
        "the file warmup/no of model_warmup is not beside config.pbtxt",
    ),
    "passive": (
        instances("count: 1 kind: KIND_CPU passive: true"),
        "every instance_group is passive",
    ),
    "boundless": (instances("count: 100000 kind: KIND_CPU"), "asks for 100000 instances"),
    "no_file": (
        state(initial('data_file: "no" name: "a"')),
        "the file initial_state/no of state 'I' is not beside config.pbtxt",
    ),
}


@pytest.mark.parametrize("name", FATAL)
def test_what_triton_finds_late_is_refused_at_once(tmp_path: Path, name: str) -> None:
    text, said = FATAL[name]
    write(tmp_path / name, text)
    with pytest.raises(Unservable, match=re.escape(said)):
        registered(tmp_path / name)


WARM: Final[dict[str, str]] = {
    "random": warmup("data_type: TYPE_FP32 dims: 1 random_data: true", batch=4),
    "skipped": warmup("data_type: TYPE_INT32 dims: 7", batch=0),
    "file": warmup('data_type: TYPE_FP32 dims: 1 input_data_file: "data"'),
    "control": warmup("data_type: TYPE_FP32 dims: 1 zero_data: true")
    + ' model_warmup { batch_size: 1 inputs { key: "IN" value { data_type: TYPE_FP32 dims: 1 '
    'zero_data: true } } inputs { key: "START" value { data_type: TYPE_INT32 dims: 1 '
    "zero_data: true } } }",
}


@pytest.mark.parametrize("name", WARM)
def test_samples_that_warm_a_model_up(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, WARM[name])
    assert registered(tmp_path / name)


@pytest.mark.parametrize("name", GOOD)
def test_what_triton_loads_is_accepted(server: DirectTriton, name: str) -> None:
    (repository,) = server.spec.repositories
    assert registered(repository / name)
    server.load(name)
    assert server.client.is_model_ready(name)
    server.unload(name)
