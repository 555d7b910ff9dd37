"""The `pytorch` backend as a Python-based backend, for TorchScript models.

Serves models whose config says `backend: "pytorch"` or `platform: "pytorch_libtorch"`, with the
naming rules and the parameters of NVIDIA's backend of that name, which takes over wherever it is
installed. It needs torch in Triton's environment: `shoal setup-triton --with-torch`.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from batching import Batches, Failed, Refused
from signature import Arrays, Signature, boolean, parameters

try:
    import torch
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "Triton's environment has no torch: run `shoal setup-triton --with-torch`"
    ) from None


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.signature = Signature.of(config)
        self.batches = Batches(config, self.signature, self.run)
        self.device = device(args)
        self.options = parameters(config)
        # One thread: each model instance is a process here, and a machine runs dozens.
        torch.set_num_threads(int(self.options.get("INTRA_OP_THREAD_COUNT", "1")))
        torch.set_num_interop_threads(int(self.options.get("INTER_OP_THREAD_COUNT", "1")))
        torch.backends.cudnn.enabled = not self.option("DISABLE_CUDNN", False)
        path = Path(args["model_repository"], args["model_version"])
        path /= config.get("default_model_filename") or "model.pt"
        try:
            self.model = torch.jit.load(path, map_location=self.device)
            self.model.eval()
        except Exception as error:
            raise pb_utils.TritonModelException(f"torch: {error}") from None
        try:
            self.order = argument_order(self.model, self.signature)
            self.positions = numbered(list(self.signature.outputs))
            self.positions |= indexed("state", self.signature.state_outputs)
        except ValueError as error:
            raise pb_utils.TritonModelException(
                f"unable to load model {args['model_name']!r}: {error}"
            ) from None

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.batches.execute(requests)

    def run(self, arrays: Arrays, names: list[str]) -> Arrays:
        values = {name: self.to_torch(name, array) for name, array in arrays.items()}
        try:
            with (
                torch.inference_mode(self.option("INFERENCE_MODE", True)),
                torch.no_grad(),
                torch.jit.optimized_execution(
                    not self.option("DISABLE_OPTIMIZED_EXECUTION", False)
                ),
            ):
                if self.order is None:
                    produced = self.model(values)
                else:
                    produced = self.model(*(values[name] for name in self.order if name in values))
        except RuntimeError as error:
            raise Failed(f"torch: {last_lines(error)}") from None
        if not isinstance(produced, (tuple, list)) or is_strings(produced):
            produced = [produced]
        return {name: self.to_numpy(name, produced) for name in names}

    def to_torch(self, name: str, array: np.ndarray) -> Any:
        if array.dtype != np.object_:
            # Triton lends the array for the call only, and read-only; a model may write.
            return torch.from_numpy(array.copy()).to(self.device)
        if array.ndim != 1:
            raise Refused(f"input {name!r}: TorchScript takes strings with one axis only")
        try:
            return [item.decode() for item in array]
        except UnicodeDecodeError as error:
            raise Refused(f"input {name!r} has an element that isn't UTF-8: {error}") from None

    def to_numpy(self, name: str, produced: Any) -> np.ndarray:
        position = self.positions[name]
        if position >= len(produced):
            raise Refused(f"output {name!r} is number {position} of a model with {len(produced)}")
        value = produced[position]
        if is_strings(value):
            return np.array([text.encode() for text in value], dtype=np.object_)
        if not isinstance(value, torch.Tensor):
            raise Refused(f"output {name!r} is a {type(value).__name__}, not a tensor")
        array = value.detach().cpu().numpy()
        data_type = self.signature.produced[name]["data_type"]
        if array.dtype != pb_utils.triton_string_to_numpy(data_type):
            raise Refused(
                f"configuration expects {data_type} for output {name!r}, "
                f"the model has {value.dtype}"
            )
        return array

    def option(self, name: str, default: bool) -> bool:
        return boolean(self.options[name]) if name in self.options else default


def device(args: dict[str, str]) -> Any:
    if args["model_instance_kind"] != "GPU":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise pb_utils.TritonModelException(
            "the model asks for a GPU instance, and this torch has no CUDA"
        )
    return torch.device("cuda", int(args["model_instance_device_id"]))


def argument_order(model: Any, signature: Signature) -> list[str] | None:
    """Return the inputs in the order of forward's arguments, or None if it takes one dictionary.

    Names are forward's own, else `<name>__<position>`, else they count as given in order. Names of
    sequence controls always tell their positions, and with a state those of all tensors do. Raises
    ValueError.
    """
    named = [*signature.inputs, *signature.made]
    fixed = {
        **indexed("sequence control", signature.controls),
        **indexed("state", signature.state_inputs),
    }
    if signature.states:
        fixed |= indexed("input", named)
        indexed("output", signature.outputs)
    names = [*named, *(name for name in fixed if name not in named)]
    arguments = [a for a in model.forward.schema.arguments if a.type.kind() != "ClassType"]
    if len(arguments) == 1 and arguments[0].type.kind() == "DictType":
        return None
    for argument in arguments:
        if argument.type.kind() not in {"TensorType", "ListType", "OptionalType"}:
            raise ValueError(f"forward takes {argument.name!r}, a {argument.type}: not a tensor")
    required = sum(not argument.has_default_value() for argument in arguments)
    if not required <= len(names) <= len(arguments):
        raise ValueError(
            f"configuration expects {len(names)} inputs, the model has {len(arguments)}"
        )
    forward = [argument.name for argument in arguments]
    if set(named) <= set(forward):
        positions = {name: forward.index(name) for name in named}
    else:
        positions = numbered(named)
    positions |= fixed
    ordered = sorted(names, key=positions.__getitem__)
    if [positions[name] for name in ordered] != list(range(len(names))):
        raise ValueError(f"inputs leave out an argument of forward: {', '.join(forward)}")
    return ordered


def numbered(names: list[str]) -> dict[str, int]:
    """Return positions from names like `OUTPUT__0`, or in order if one isn't like that."""
    try:
        return indexed("tensor", names)
    except ValueError:
        return {name: position for position, name in enumerate(names)}


def indexed(kind: str, names: Iterable[str]) -> dict[str, int]:
    """Return positions from names like `START__1`. Raises ValueError if one isn't like that."""
    positions = {}
    for name in names:
        match = re.fullmatch(r".*?__(\d+)", name)
        if match is None:
            raise ValueError(f"{kind} {name!r} does not follow <name>__<index> naming convention")
        positions[name] = int(match[1])
    return positions


def is_strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def last_lines(error: RuntimeError) -> str:
    """The message proper of a TorchScript error, without the source it quotes before."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[-3:])
