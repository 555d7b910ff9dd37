"""config.pbtxt: read, completed and compared.

Shoal's servers run without Triton's auto-completion, with which a Python model takes a second
longer to load, and Triton reports a config's mistakes only in its own log. So configs are completed
here, the way Triton does it, and what cannot be served is refused here, with the reason.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.common.errors import InvalidField
from services.registry.core import validation
from services.registry.core.catalogue import Part
from services.registry.formats.checks import check_config
from services.registry.formats.ensembles import check_ensemble, is_ensemble
from services.registry.formats.onnx import NotReadable, read_graph
from services.registry.formats.refusal import Refusal, Unservable
from services.registry.formats.sequences import check_sequences
from services.registry.formats.tensor import Tensor
from services.registry.formats.warmup import check_warmup
from shoal import names

REQUIRES: Final = "shoal.requires"
PYTHON_FILE: Final = "model.py"
CONFIG_FILE: Final = "config.pbtxt"

# Triton's own default for a model whose tensors all leave their first dimension open.
DEFAULT_MAX_BATCH_SIZE: Final = 4

# (backend, platform, file), in the order in which Triton tries them. Where the platform is empty,
# Triton fills in none.
BACKENDS: Final = (
    ("tensorflow", "tensorflow_savedmodel", "model.savedmodel"),
    ("tensorflow", "tensorflow_graphdef", "model.graphdef"),
    ("tensorrt", "tensorrt_plan", "model.plan"),
    ("onnxruntime", "onnxruntime_onnx", "model.onnx"),
    ("openvino", "", "model.xml"),
    ("pytorch", "pytorch_libtorch", "model.pt"),
    ("python", "", PYTHON_FILE),
)

# OpenVINO prefers a CPU, and a custom backend may prefer anything.
_WITHOUT_PREFERENCE: Final = {backend for backend, _, _ in BACKENDS} - {"openvino"}
# Backends beside which Triton accepts any platform.
_WITHOUT_PLATFORMS: Final = frozenset({"python", "openvino"})

# Triton starts a Python model through `bash -c`, with these words unquoted.
_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_PATH = re.compile(r"[A-Za-z0-9_./-]+")
_ENVIRONMENT = re.compile(r"(\$\$TRITON_MODEL_DIRECTORY/)?[A-Za-z0-9_./-]+")
ENVIRONMENT_PATH: Final = "EXECUTION_ENV_PATH"


def parse_config(text: str | bytes) -> ModelConfig:
    """Parse the text of a config.pbtxt. Raises Unservable, with line and column.

    As in Triton, comments may be in any encoding. Strings must be UTF-8, because clients that ask
    for the config could not read it otherwise.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="surrogateescape")
    config = ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise Unservable(f"{CONFIG_FILE}: {_located(error)}") from None
    except (ValueError, SystemError):  # the parser's own, for some numbers and names
        raise Unservable(f"{CONFIG_FILE}: a number or a name in it is impossible") from None
    return config


def config_text(raw: bytes) -> str:
    """Return a serialized config as the text of a config.pbtxt."""
    return str(text_format.MessageToString(ModelConfig.FromString(raw)))


def serialize(config: ModelConfig) -> bytes:
    """Serialize a config, the same for equal configs: maps are sorted."""
    return bytes(config.SerializeToString(deterministic=True))


def complete_config(
    given: ModelConfig,
    model: str,
    folder: Path | None,
    auxiliary: Collection[str],
    kind: str,
    *,
    bare: bool = False,
) -> ModelConfig:
    """Return the config that a server is given, with all that Triton would fill in or guess.

    `folder` is the version's, `auxiliary` are the files beside config.pbtxt, and `kind` is the
    instance kind if the config gives none. A `bare` folder is not inside a model's folder. Raises
    Unservable.
    """
    config = drafted_config(given, model, folder, auxiliary, kind, bare=bare)
    check_complete(config, auxiliary)
    return config


def drafted_config(
    given: ModelConfig,
    model: str,
    folder: Path | None,
    auxiliary: Collection[str],
    kind: str,
    *,
    bare: bool = False,
) -> ModelConfig:
    """Return the config as far as the model's files tell it. Raises Unservable."""
    config = ModelConfig()
    config.CopyFrom(given)
    if config.name not in ("", model):
        raise Unservable(
            f"unexpected directory name {model!r} for model {config.name!r}, directory name must "
            "equal model name"
        )
    config.name = model
    _check_words(config)
    _check_paths(config, auxiliary)
    if is_ensemble(config):
        check_ensemble(config)
    else:
        content = sorted(path.name for path in folder.iterdir()) if folder else []
        _complete_backend(config, content, bare=bare)
        _complete_instances(config, kind)
        if config.backend == "onnxruntime" and folder and not (config.input and config.output):
            _complete_tensors(config, folder / config.default_model_filename)
    return config


def check_complete(config: ModelConfig, auxiliary: Collection[str]) -> None:
    """Check a config that nobody completes any further. Raises Unservable."""
    _check_outputs(config)
    check_config(config)
    check_sequences(config, auxiliary)
    check_warmup(config, auxiliary)


@lru_cache(maxsize=4096)
def is_stateful(config: bytes) -> bool:
    """Return whether a serialized config asks for sequence batching."""
    return bool(ModelConfig.FromString(config).HasField("sequence_batching"))


@lru_cache(maxsize=4096)
def is_decoupled(config: bytes) -> bool:
    """Return whether a serialized config allows any number of replies to a request."""
    return bool(ModelConfig.FromString(config).model_transaction_policy.decoupled)


@lru_cache(maxsize=4096)
def formats_of(config: bytes) -> tuple[str, ...]:
    """Return the words for what a serialized config serves, such as "onnxruntime" and "onnx"."""
    read = ModelConfig.FromString(config)
    words = (read.backend, read.platform, read.platform.partition("_")[2])
    return tuple(dict.fromkeys(filter(None, words)))


@lru_cache(maxsize=4096)
def number_of_steps(config: bytes) -> int:
    """Return how many steps a serialized config has, if it is an ensemble's."""
    return len(_steps(ModelConfig.FromString(config)))


def parts_of(config: ModelConfig) -> tuple[Part, ...]:
    """Return a part for each step, then those that `shoal.requires` names. Raises Unservable."""
    steps = ((step.model_name, max(step.model_version, 0)) for step in _steps(config))
    declared = config.parameters[REQUIRES].string_value if REQUIRES in config.parameters else ""
    try:
        named = [*steps, *validation.requirements(declared)]
    except InvalidField as error:
        raise Unservable(error.message) from None
    for model, _ in named:
        if not names.is_model_name(model):
            raise Unservable(f"{model!r} cannot be a model's name")
    return tuple(Part(model, number, number) for model, number in named)


def with_parts(raw: bytes, chosen: Sequence[Part]) -> bytes:
    """Return the serialized config with each step's chosen version, or -1 while there is none."""
    config = ModelConfig.FromString(raw)
    for step, part in zip(_steps(config), chosen, strict=False):
        step.model_version = part.chosen or -1
    return serialize(config)


def config_digest(raw: bytes, auxiliary_digest: str) -> str:
    """Return a digest that versions share if they can be resident on one server side by side.

    Triton changes `version_policy` and `instance_group` in place. Any other difference, and any
    change to a file beside config.pbtxt, reloads every resident version of the model.
    """
    config = ModelConfig.FromString(raw)
    config.ClearField("version_policy")
    config.ClearField("instance_group")
    return hashlib.sha256(serialize(config) + b"\0" + auxiliary_digest.encode()).hexdigest()


def runs_own_code(config: ModelConfig) -> bool:
    """Return whether Python files or libraries in the model's folder are meant to be run.

    Triton looks for a backend in the model's own folder first, so a stray `model.py` beside an ONNX
    file would be run instead of the backend that the config names.
    """
    given = any(backend == config.backend for backend, _, _ in BACKENDS)
    return bool(config.backend == "python" or config.runtime or not given)


def label_files(config: ModelConfig) -> list[str]:
    return sorted({output.label_filename for output in config.output if output.label_filename})


def _steps(config: ModelConfig) -> list[model_config_pb2.ModelEnsembling.Step]:
    return list(config.ensemble_scheduling.step)


def _located(error: text_format.ParseError) -> str:
    """Return the parser's message with its `line:column : text` spelled out."""
    text = str(error).encode(errors="surrogateescape").decode(errors="replace")
    if match := re.match(r"(\d+):(\d+) : (.*)", text, re.DOTALL):
        what = "a string is not UTF-8 text" if "surrogates not allowed" in text else match[3]
        return f"line {match[1]}, column {match[2]}: {what}"
    return text


def _check_words(config: ModelConfig) -> None:
    words = [
        ("backend", config.backend, _WORD),
        ("runtime", config.runtime, _WORD),
        ("default_model_filename", config.default_model_filename, _PATH),
        *(("instance_group name", group.name, _WORD) for group in config.instance_group),
    ]
    if ENVIRONMENT_PATH in config.parameters:
        value = config.parameters[ENVIRONMENT_PATH].string_value
        words.append((ENVIRONMENT_PATH, value, _ENVIRONMENT))
    for field, text, allowed in words:
        if text and allowed.fullmatch(text) is None:
            raise Unservable(
                f"{field} {text[:256]!r} is not allowed: Triton passes it to a shell, so it may "
                "contain only letters, digits, '_', '.' and '-'"
            )


def _check_paths(config: ModelConfig, auxiliary: Collection[str]) -> None:
    """Check file names, which Triton opens whatever they point at. Raises Unservable."""
    files = [config.default_model_filename, *config.cc_model_filenames.values()]
    for name in filter(None, [*files, *label_files(config)]):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise Unservable(f"the file name {name!r} leads out of the model's folder")
    for name in label_files(config):
        if name not in auxiliary:
            raise Unservable(f"its label file {name!r} is not beside {CONFIG_FILE}")


def _complete_backend(config: ModelConfig, content: Collection[str], *, bare: bool) -> None:
    row = next((row for row in BACKENDS if _matches(config, row, content)), None)
    if row is None:
        _complete_custom_backend(config, content, bare=bare)
        return
    backend, platform, filename = row
    config.backend = config.backend or backend
    config.platform = config.platform or platform
    if config.backend == "pytorch" and config.runtime == PYTHON_FILE:
        filename = ""  # its model.py is code for PyTorch's own runtime
    config.default_model_filename = config.default_model_filename or filename
    wanted = config.default_model_filename or config.runtime
    if not config.cc_model_filenames and PurePosixPath(wanted).parts[0] not in content:
        raise Unservable(_no_file(wanted, bare=bare) + _instead(config, content))


def _complete_custom_backend(config: ModelConfig, content: Collection[str], *, bare: bool) -> None:
    """Complete the config of a backend that knows its own files.

    As Triton has it, a model named `model.dali` whose config says nothing is for backend `dali`.
    """
    if config.backend:
        return
    _, dot, backend = config.name.partition(".")
    if not dot or not backend or config.platform or config.default_model_filename:
        raise Unservable(_no_backend(config, content, bare=bare))
    config.backend = backend
    config.default_model_filename = f"model.{backend}"
    _check_words(config)


def _matches(config: ModelConfig, row: tuple[str, str, str], content: Collection[str]) -> bool:
    backend, platform, filename = row
    if config.platform and config.backend not in _WITHOUT_PLATFORMS:
        return bool(config.platform == platform)
    if config.backend:
        # TensorFlow has two formats, which the file tells apart.
        return bool(config.backend == backend) and (backend != "tensorflow" or filename in content)
    if config.default_model_filename:
        return bool(config.default_model_filename == filename)
    return filename in content


def _no_backend(config: ModelConfig, content: Collection[str], *, bare: bool) -> str:
    if config.platform:
        known = any(backend == config.platform for backend, _, _ in BACKENDS)
        hint = f': write backend: "{config.platform}" instead' if known else ""
        return f"unexpected platform type '{config.platform}'{hint}"
    if not content:
        return "its folder is empty" if bare else "its version folder is empty"
    known_files = ", ".join(filename for _, _, filename in BACKENDS)
    where = "its folder" if bare else "its version folder"
    return f"its config names no backend, and {where} has none of {known_files}"


def _no_file(wanted: str, *, bare: bool) -> str:
    if bare:
        return f"its folder has neither {wanted} nor a version folder such as 1"
    return f"its version folder has no {wanted}"


def _instead(config: ModelConfig, content: Collection[str]) -> str:
    """Return what to write where the folder has another backend's file, or ""."""
    for backend, platform, filename in BACKENDS:
        if filename in content and backend != config.backend:
            given = f'platform: "{platform}"' if platform else f'backend: "{backend}"'
            return f". It has {filename}, for which the config must say {given}"
    return ""


def _complete_instances(config: ModelConfig, kind: str) -> None:
    """Set one instance; on a CPU, Triton would make two, each with a copy of the weights.

    Backends that may prefer a kind get none: Triton asks them only if there is no group at all.
    """
    if not config.instance_group and config.backend in _WITHOUT_PREFERENCE:
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.Kind.Value(kind))
    for group in config.instance_group:
        group.count = max(group.count, 1)


def _complete_tensors(config: ModelConfig, path: Path) -> None:
    try:
        graph = read_graph(path)
    except NotReadable as error:
        raise Unservable(str(error)) from None
    tensors = (*graph.inputs, *graph.outputs)
    said_nothing = not (config.input or config.output or config.max_batch_size)
    if said_nothing and all(tensor.shape[:1] == (-1,) for tensor in tensors):
        config.max_batch_size = DEFAULT_MAX_BATCH_SIZE
        if config.WhichOneof("scheduling_choice") is None:
            config.dynamic_batching.SetInParent()
    if not config.input:
        fill_tensors(config.input, graph.inputs, batched=config.max_batch_size > 0)
    if not config.output:
        fill_tensors(config.output, graph.outputs, batched=config.max_batch_size > 0)


def fill_tensors(entries: Any, tensors: Iterable[Tensor], *, batched: bool) -> None:
    """Add a model's tensors to a config's. Raises Refusal where a batch does not fit them."""
    for tensor in tensors:
        if batched and tensor.shape[:1] != (-1,):
            raise Refusal(
                f"max_batch_size is not 0, but the first dimension of {tensor.name!r} is fixed"
            )
        shape = tensor.shape[1:] if batched else tensor.shape
        kind = model_config_pb2.DataType.Value(tensor.data_type)
        # Triton has no tensors without dimensions: it removes one of size 1 for the model.
        entry = entries.add(name=tensor.name, data_type=kind, dims=shape or (1,))
        if not shape:
            entry.reshape.SetInParent()


def _check_outputs(config: ModelConfig) -> None:
    if not config.output:
        raise Unservable(
            f"{CONFIG_FILE} lists no output: name the model's inputs and outputs there, because "
            "servers do not ask the model for them"
        )
