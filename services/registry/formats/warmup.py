"""What Triton checks in model_warmup, in its words."""

from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any, Final

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInput

from services.registry.formats.refusal import Unservable

FOLDER: Final = "warmup"  # the folder with the files of samples


def check_warmup(config: ModelConfig, files: Collection[str]) -> None:
    """Check the samples. `files` are the paths beside config.pbtxt, relative to it.

    Triton ignores a sample whose batch_size is 0. Inputs that the config does not have are passed
    to the model as they are. Raises Unservable.
    """
    entries = {entry.name: entry for entry in config.input}
    for sample in config.model_warmup:
        if sample.batch_size == 0:
            continue
        for name, given in sample.inputs.items():
            _check_input(name, given, files)
            if name in entries:
                _check_fits(name, given, entries[name])
        missing = [
            entry.name
            for entry in config.input
            if entry.name not in sample.inputs and not entry.optional
        ]
        if missing:
            raise Unservable(
                f"model_warmup '{sample.name}' lacks the required input '{missing[0]}'"
            )
        if 0 < config.max_batch_size < sample.batch_size:
            raise Unservable(
                f"model_warmup '{sample.name}' has batch size {sample.batch_size}, max allowed is "
                f"{config.max_batch_size}"
            )


def _check_input(name: str, given: Any, files: Collection[str]) -> None:
    if any(dim == -1 for dim in given.dims):
        raise Unservable(
            f"warmup setting expects all variable-size dimensions are specified for input '{name}'"
        )
    match given.WhichOneof("input_data_type"):
        case None:
            raise Unservable(f"warmup setting expects input '{name}' to have input_data_type set")
        case "input_data_file" if str(PurePosixPath(FOLDER, given.input_data_file)) not in files:
            raise Unservable(
                f"the file {FOLDER}/{given.input_data_file} of model_warmup is not beside "
                "config.pbtxt"
            )


def _check_fits(name: str, given: Any, entry: ModelInput) -> None:
    if given.data_type != entry.data_type:
        sample, wanted = DataType.Name(given.data_type), DataType.Name(entry.data_type)
        raise Unservable(
            f"model_warmup input '{name}' data-type is '{sample.removeprefix('TYPE_')}', but the "
            f"model expects '{wanted.removeprefix('TYPE_')}'"
        )
    dims = list(entry.dims)
    fits = len(given.dims) == len(dims) and all(
        wanted in (-1, size) for size, wanted in zip(given.dims, dims, strict=True)
    )
    if not (fits or entry.is_shape_tensor):
        raise Unservable(
            f"model_warmup input '{name}' has shape {list(given.dims)}, the config says {dims}"
        )
