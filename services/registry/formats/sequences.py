"""What Triton checks in sequence_batching, in its words. Every function raises Unservable."""

from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any, Final

from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelSequenceBatching

from services.registry.formats.checks import check_preferred_sizes
from services.registry.formats.refusal import Unservable

INITIAL_STATE: Final = "initial_state"  # the folder with the files of initial states

_Control = ModelSequenceBatching.Control
_FLAGS: Final = (
    _Control.CONTROL_SEQUENCE_START,
    _Control.CONTROL_SEQUENCE_END,
    _Control.CONTROL_SEQUENCE_READY,
)
_VALUES: Final = ("int32_false_true", "fp32_false_true", "bool_false_true")
_ID_TYPES: Final = (
    *(model_config_pb2.TYPE_UINT64, model_config_pb2.TYPE_INT64, model_config_pb2.TYPE_UINT32),
    *(model_config_pb2.TYPE_INT32, model_config_pb2.TYPE_STRING),
)


def check_sequences(config: ModelConfig, files: Collection[str]) -> None:
    """Check sequence_batching. `files` are the paths beside config.pbtxt, relative to it."""
    batching = config.sequence_batching
    _check_names(batching)
    for kind in (*_FLAGS, _Control.CONTROL_SEQUENCE_CORRID):
        controls = [
            control
            for given in batching.control_input
            for control in given.control
            if control.kind == kind
        ]
        _check_controls(controls, kind)
    if batching.HasField("oldest"):
        sizes = batching.oldest.preferred_batch_size
        what = "sequence batching preferred batch size"
        check_preferred_sizes(sizes, config.max_batch_size, what, "max batch size")
    if not 0 <= batching.direct.minimum_slot_utilization <= 1:
        raise Unservable("sequence batching minimum slot utilization must be in range (0.0, 1.0]")
    _check_states(batching, files)


def _check_names(batching: ModelSequenceBatching) -> None:
    seen: set[str] = set()
    for given in batching.control_input:
        if not given.name:
            raise Unservable("sequence batching control tensor must have a name")
        if given.name in seen:
            raise Unservable(
                f"sequence batching control tensor '{given.name}' is specified for multiple "
                "control kinds"
            )
        seen.add(given.name)


def _check_controls(controls: list[Any], kind: int) -> None:
    """Check the controls of one kind, of which there may be one."""
    name = _Control.Kind.Name(kind)
    if len(controls) > 1:
        # Triton has looked at the first before it sees that there is another.
        _check_controls(controls[:1], kind)
        raise Unservable(f"sequence batching specifies multiple {name} tensors")
    for control in controls:
        given = [field for field in _VALUES if getattr(control, field)]
        if kind in _FLAGS:
            _check_flag(control, given, name)
        elif given:
            raise Unservable(
                "sequence batching must not specify either 'int32_false_true', "
                f"'fp32_false_true' or 'bool_false_true' for {name}"
            )
        elif control.data_type not in _ID_TYPES:
            raise Unservable(
                f"unexpected data type for control {name}. Allowed data types are TYPE_UINT64, "
                "TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING"
            )


def _check_flag(control: Any, given: list[str], name: str) -> None:
    if not given:
        raise Unservable(
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or "
            f"'bool_false_true' for {name}"
        )
    if len(given) > 1:
        raise Unservable(
            "sequence batching specifies more than one from 'int32_false_true', "
            f"'fp32_false_true' and 'bool_false_true' for {name}"
        )
    if len(getattr(control, given[0])) != 2:
        raise Unservable(
            f"sequence batching control '{given[0]}' must have exactly 2 entries for {name}"
        )


def _check_states(batching: ModelSequenceBatching, files: Collection[str]) -> None:
    seen: set[str] = set()
    for state in batching.state:
        count = len(state.initial_state)
        if count > 1:
            raise Unservable(
                f"initial_state field for state input '{state.input_name}' must contain exactly "
                f"one or zero element. Found '{count}' elements."
            )
        for initial in state.initial_state:
            _check_initial_state(state, initial, files)
            if state.input_name in seen:
                raise Unservable(f"State input name '{state.input_name}' specified more than once.")
            seen.add(state.input_name)


def _check_initial_state(state: Any, initial: Any, files: Collection[str]) -> None:
    name = state.input_name
    if initial.data_type != state.data_type:
        raise Unservable(
            f"The data type used for 'initial_state' field of state '{name}' does not match the "
            "state data type."
        )
    if not initial.name:
        raise Unservable(
            f"Field 'name' must be set when using initial_state for state input '{name}'."
        )
    if len(initial.dims) != len(state.dims):
        raise Unservable(
            "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions "
            f"for state input '{name}'. {len(initial.dims)} != {len(state.dims)}"
        )
    for given, wanted in zip(initial.dims, state.dims, strict=True):
        if given == -1:
            raise Unservable(
                f"'initial_state' field for state input name '{name}' contains variable dimensions."
            )
        if wanted not in (-1, given):
            raise Unservable(
                f"'initial_state' dim for input name '{name}' doesn't match 'state' dim "
                f"description. {given} != {wanted}"
            )
    match initial.WhichOneof("state_data"):
        case None:
            raise Unservable(f"initial_state setting expects state'{name}' to have state_data set")
        case "data_file" if str(PurePosixPath(INITIAL_STATE, initial.data_file)) not in files:
            raise Unservable(
                f"the file {INITIAL_STATE}/{initial.data_file} of state '{name}' is not beside "
                "config.pbtxt"
            )
