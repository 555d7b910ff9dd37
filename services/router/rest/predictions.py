"""Converts predictions: between names, lists and numbers in JSON, and requests for a model.

Whatever goes in and out can be pickled, so that another process can do the work."""

import base64
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, NamedTuple, cast

import numpy as np

from services.router.control import model_info
from services.router.core.rest.infer import Infer, Input, Scalar, flat_elements, scalar
from services.router.core.rest.values import INVALID, WrongRequest
from services.router.rest import tensors
from services.router.rest.documents import dumps, is_finite, loads

Columns = dict[str, Any]

_NONE: Final = memoryview(b"")
_WORDS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Form(NamedTuple):
    """The form of the answer."""

    #: How many instances were asked; 0 for `inputs`.
    instances: int = 0
    #: Whether they were asked in one request.
    batch: bool = False
    #: Whether the input was not written as a batch of one, so that the answer is not either.
    single: bool = False


class PredictionRequest(NamedTuple):
    """Serialized ModelInferRequests, and the form in which to return their answers."""

    messages: Sequence[bytes]
    form: Form


# --- requests -------------------------------------------------------------------------------------


def read(body: bytes, model: str, version: str, config: Any) -> PredictionRequest:
    """Return the requests in a body. `config` is an inference.ModelConfig. Raises WrongRequest."""
    asked = _document(body)
    if len(asked.keys() & {"inputs", "instances"}) != 1:
        raise _refused(
            'give either {"inputs": {name: values}} or {"instances": [...]}. ' + _takes(config)
        )
    reader = _Reader(model, version, config, _parameters(asked))
    if "inputs" in asked:
        return reader.inputs(asked["inputs"])
    return reader.instances(asked["instances"])


class _Reader:
    """Makes requests for a model from JSON values."""

    def __init__(
        self, model: str, version: str, config: Any, parameters: dict[str, Scalar]
    ) -> None:
        self._model = model
        self._version = version
        self._config = config
        self._parameters = parameters

    def inputs(self, given: object) -> PredictionRequest:
        columns = given if isinstance(given, dict) else self._as_only_input(given)
        message, single = self._message(columns)
        return PredictionRequest([message], Form(single=single))

    def instances(self, given: object) -> PredictionRequest:
        if not isinstance(given, list) or not given:
            raise _refused(f"'instances' is a list of at least one. {_takes(self._config)}")
        rows = [cast("Columns", one) if _is_row(one) else self._as_only_input(one) for one in given]
        names = rows[0].keys()
        if any(row.keys() != names for row in rows):
            raise _refused("all 'instances' have to name the same inputs")
        if not self._config.max_batch_size:
            return PredictionRequest([self._message(row)[0] for row in rows], Form(len(rows)))
        columns = {name: [row[name] for row in rows] for name in names}
        return PredictionRequest(
            [self._message(columns, rows=True)[0]], Form(len(rows), batch=True)
        )

    def _as_only_input(self, value: object) -> Columns:
        if len(self._config.input) != 1:
            raise _refused(f"say which input is which, by name. {_takes(self._config)}")
        return {self._config.input[0].name: value}

    def _message(self, columns: Columns, *, rows: bool = False) -> tuple[bytes, bool]:
        """Return the message, and whether the values stand for a batch of one that was not written
        out. `rows` says that there is one value for each instance, so that they do not."""
        declared = {one.name: one for one in self._config.input}
        unknown = sorted(columns.keys() - declared.keys())
        missing = sorted(
            name for name, one in declared.items() if name not in columns and not one.optional
        )
        if unknown or missing:
            what = f"has no input {unknown[0]!r}" if unknown else f"needs input {missing[0]!r}"
            raise _refused(f"model '{self._model}' {what}. {_takes(self._config)}")
        fitted = [self._fitted(declared[name], value, rows) for name, value in columns.items()]
        single = all(alone for _, alone in fitted)
        asked = Infer(parameters=self._parameters, inputs=tuple(one for one, _ in fitted))
        return tensors.message(self._model, self._version, asked, _NONE), single

    def _fitted(self, declared: Any, value: object, rows: bool) -> tuple[Input, bool]:
        """Return a value as the model takes it, and whether the batch dimension was added. A last
        dimension of 1 needs no brackets."""
        given = _shape(declared.name, value)
        batch = bool(self._config.max_batch_size)
        wanted = (*(-1,) * batch, *declared.dims)
        shapes = [(given, False), ((*given, 1), False)]
        if batch and not rows:
            shapes[1:1] = [((1, *given), True), ((1, *given, 1), True)]
        for shape, alone in shapes:
            if len(shape) == len(wanted) and all(
                want in (-1, have) for want, have in zip(wanted, shape, strict=True)
            ):
                data = value if isinstance(value, list) else [value]
                datatype = model_info.datatype(declared.data_type)
                return _input(declared.name, datatype, shape, data), alone
        raise _refused(
            f"input '{declared.name}' has shape {list(given)}, which model '{self._model}' does "
            f"not take. {_takes(self._config)}"
        )


def _document(body: bytes) -> dict[str, Any]:
    try:
        asked = loads(body)
    except WrongRequest as refused:
        raise _refused(refused.text) from refused
    if not isinstance(asked, dict):
        raise _refused("the body has to be a JSON object")
    return asked


def _parameters(asked: dict[str, Any]) -> dict[str, Scalar]:
    given = asked.get("parameters", {})
    if not isinstance(given, dict):
        raise _refused("'parameters' has to be an object")
    return {name: scalar(name, value) for name, value in given.items()}


def _is_row(one: object) -> bool:
    return isinstance(one, dict) and one.keys() != {"b64"}


def _takes(config: Any) -> str:
    """Return in words what the model takes."""
    batch = ["batch"] if config.max_batch_size else []
    inputs = (
        f"{one.name} ({model_info.datatype(one.data_type)}, "
        f"[{', '.join([*batch, *('any' if dim == -1 else str(dim) for dim in one.dims)])}])"
        for one in config.input
    )
    return f"It takes {', '.join(inputs)}."


def _shape(name: str, value: object) -> tuple[int, ...]:
    """Return the shape of nested lists, which must have the same length at each depth. Raises
    WrongRequest."""
    level = [value]
    shape: list[int] = []
    while level and all(isinstance(one, list) for one in level):
        lists = cast("list[list[object]]", level)
        sizes = {len(one) for one in lists}
        if len(sizes) > 1:
            raise _refused(f"input '{name}' has rows of different lengths")
        shape.append(sizes.pop())
        level = list(chain.from_iterable(lists))
    return tuple(shape)


def _input(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> Input:
    """Return an input. What JSON cannot express is made from numbers (FP16, BF16), from the words
    "NaN", "Infinity" and "-Infinity", or from `{"b64": text}` (bytes). Raises WrongRequest."""
    as_numbers = "FP32" if datatype in ("FP16", "BF16") else datatype
    if datatype == "BYTES":
        data = _decode_b64(data)
    elif as_numbers in ("FP32", "FP64"):
        data = _read_words(data)
    try:
        flat = flat_elements(name, as_numbers, shape, data)
    except WrongRequest as refused:
        raise _refused(f"input '{name}' cannot be read as {datatype}: {refused.text}") from refused
    return Input(name, datatype, shape, elements=flat)


def _read_words(data: Any) -> Any:
    """Return nested lists with the numbers that JSON has no digits for in place of their words."""
    if isinstance(data, list):
        if not {str, list}.isdisjoint(map(type, data)):
            return [_read_words(one) for one in data]
        return data
    return _WORDS.get(data, data) if isinstance(data, str) else data


def _decode_b64(data: Any) -> Any:
    if isinstance(data, list):
        return [_decode_b64(one) for one in data]
    if isinstance(data, dict) and data.keys() == {"b64"} and isinstance(data["b64"], str):
        try:
            return base64.b64decode(data["b64"], validate=True).decode("utf-8", "surrogateescape")
        except ValueError as error:
            raise _refused(f"a value under 'b64' is not base64: {error}") from error
    return data


# --- answers --------------------------------------------------------------------------------------


def written(answers: Sequence[tensors.Decoded], form: Form) -> bytes:
    """Return the body with the answers. Raises WrongRequest."""
    response = answers[0].response
    by = {"model": response.model_name, "version": response.model_version}
    if not form.instances:
        return dumps({"outputs": _outputs(answers[0], single=form.single), **by})
    several = map(_arrays, answers)
    found = _rows(answers[0], form.instances) if form.batch else list(several)
    return dumps({"predictions": list(map(_prediction, found)), **by})


def _outputs(answer: tensors.Decoded, *, single: bool) -> dict[str, Any]:
    found = _arrays(answer)
    if single:
        found = {name: array[0] for name, array in found.items()}
    return {name: _nested(array) for name, array in found.items()}


def _rows(answer: tensors.Decoded, rows: int) -> list[dict[str, tensors.Array]]:
    found = _arrays(answer)
    if any(array.shape[:1] != (rows,) for array in found.values()):
        raise _refused(f"the answers for {rows} instances cannot be told apart: send 'inputs'")
    return [{name: array[i] for name, array in found.items()} for i in range(rows)]


def _prediction(outputs: dict[str, tensors.Array]) -> Any:
    """Return the outputs. If there is only one, it comes without its name."""
    if len(outputs) == 1:
        return _nested(next(iter(outputs.values())))
    return {name: _nested(array) for name, array in outputs.items()}


def _arrays(answer: tensors.Decoded) -> dict[str, tensors.Array]:
    return {
        output.name: tensors.array(output.name, output.datatype, output.shape, content)
        for output, content in zip(answer.response.outputs, answer.contents, strict=False)
    }


def _nested(found: Any) -> Any:
    """Return what `documents.dumps` writes, with bytes as text if they are text, and as words what
    JSON has no digits for."""
    if isinstance(found, bytes):
        return _text(found)
    if not isinstance(found, np.ndarray):
        return found if is_finite(found) else _write_words(found.tolist())
    if found.dtype == np.object_:
        return [_nested(one) for one in found]
    return np.ascontiguousarray(found) if is_finite(found) else _write_words(found.tolist())


def _write_words(found: Any) -> Any:
    if isinstance(found, list):
        return list(map(_write_words, found))
    if math.isfinite(found):
        return found
    return "NaN" if math.isnan(found) else "Infinity" if found > 0 else "-Infinity"


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _refused(text: str) -> WrongRequest:
    return WrongRequest(INVALID, text)
