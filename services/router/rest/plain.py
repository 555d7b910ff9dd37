"""Routes for users of small model servers: names, lists and numbers, no tensors to describe."""

import asyncio
import base64
from itertools import chain
from typing import Any, Final, cast

import numpy as np

from services.router import model_info
from services.router.core.rest import Infer, Input, elements, scalar
from services.router.core.rest_json import INVALID, Refused
from services.router.rest import tensors
from services.router.rest.apart import apart
from services.router.rest.incoming import Incoming
from services.router.rest.messages import document
from services.router.rest.reply import Reply, of_json
from services.router.rest.service import Service

AT_ONCE: Final = 8  # requests that one call makes of a model that takes no batches

Columns = dict[str, Any]


async def predict(incoming: Incoming, service: Service) -> Reply:
    """`inputs` by name, or `instances` one by one; answered in the same way."""
    model, version = _named(incoming)
    service.known(model, version)
    await incoming.decompress(service.max_body)
    config = (await service.call("ModelConfig", incoming, name=model, version=version)).config
    asked = await apart(len(incoming.body), _document, incoming, service)
    both = asked.keys() & {"inputs", "instances"}
    if len(both) != 1:
        raise _refused(
            'give either {"inputs": {name: values}} or {"instances": [...]}. ' + _takes(config)
        )
    work = _Prediction(incoming, service, config, model, version, _parameters(asked))
    if "inputs" in asked:
        return await work.columns(asked["inputs"])
    return await work.instances(asked["instances"])


async def metadata(incoming: Incoming, service: Service) -> Reply:
    model, version = _named(incoming)
    named = {"name": model, "version": version}
    described = document(await service.call("ModelMetadata", incoming, **named))
    config = (await service.call("ModelConfig", incoming, **named)).config
    route = service.watch.table.routes[model]
    return of_json(
        {
            **described,
            "default_version": str(route.default_version or ""),
            "aliases": {name: str(number) for name, number in sorted(route.aliases.items())},
            "max_batch_size": config.max_batch_size,
            "decoupled": config.model_transaction_policy.decoupled,
        }
    )


async def ready(incoming: Incoming, service: Service) -> Reply:
    model, version = _named(incoming)
    service.known(model, version)
    reply = await service.call("ModelReady", incoming, name=model, version=version)
    return of_json({"name": model, "ready": reply.ready}, 200 if reply.ready else 503)


async def status(incoming: Incoming, service: Service) -> Reply:
    routes = service.watch.table.routes
    return of_json(
        {
            "models": [
                {
                    "name": name,
                    "default_version": str(route.default_version or ""),
                    "aliases": {alias: str(of) for alias, of in sorted(route.aliases.items())},
                    "versions": [
                        {
                            "version": str(number),
                            "servable": entry.servable,
                            "resident": bool(entry.servers),
                            "servers": list(entry.servers),
                            "reason": "" if entry.servers else entry.reason,
                        }
                        for number, entry in sorted(route.versions.items())
                    ],
                }
                for name, route in sorted(routes.items())
            ]
        }
    )


async def health(incoming: Incoming, service: Service) -> Reply:
    """503 until there is a first table of placements."""
    there = service.watch.synchronized.is_set()
    return of_json(
        {
            "status": "ok" if there else "starting",
            "controller_connected": service.watch.connected,
            "models": len(service.watch.table.routes),
        },
        200 if there else 503,
    )


class _Prediction:
    def __init__(
        self,
        incoming: Incoming,
        service: Service,
        config: Any,
        model: str,
        version: str,
        parameters: dict[str, Any],
    ) -> None:
        self._incoming = incoming
        self._service = service
        self._config = config
        self._model = model
        self._version = version
        self._parameters = parameters

    async def columns(self, inputs: object) -> Reply:
        columns = inputs if isinstance(inputs, dict) else self._alone(inputs)
        answer, single = await self._infer(columns)
        return await apart(answer.size, self._columns, answer, single)

    def _columns(self, answer: tensors.Answered, single: bool) -> Reply:
        found = _arrays(answer)
        if single:
            found = {name: array[0] for name, array in found.items()}
        return self._reply("outputs", {name: _nested(a) for name, a in found.items()}, answer)

    async def instances(self, instances: object) -> Reply:
        if not isinstance(instances, list) or not instances:
            raise _refused(f"'instances' is a list of at least one. {_takes(self._config)}")
        rows = await apart(len(self._incoming.body), self._rows, instances)
        if not self._config.max_batch_size:
            answers = await self._one_by_one(rows)
            size = sum(answer.size for answer in answers)
            return await apart(size, self._several, answers)
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        answer, _ = await self._infer(columns, rows=True)
        return await apart(answer.size, self._batch, answer, len(rows))

    def _rows(self, instances: list[object]) -> list[Columns]:
        rows = [
            cast("Columns", one) if self._is_row(one) else self._alone(one) for one in instances
        ]
        names = rows[0].keys()
        if any(row.keys() != names for row in rows):
            raise _refused("all 'instances' have to name the same inputs")
        return rows

    def _batch(self, answer: tensors.Answered, rows: int) -> Reply:
        found = _arrays(answer)
        if any(array.shape[:1] != (rows,) for array in found.values()):
            raise _refused(f"the answers for {rows} instances cannot be told apart: send 'inputs'")
        answers = [{name: array[i] for name, array in found.items()} for i in range(rows)]
        return self._predictions(answers, answer)

    def _several(self, answers: list[tensors.Answered]) -> Reply:
        return self._predictions([_arrays(answer) for answer in answers], answers[0])

    def _predictions(
        self, answers: list[dict[str, tensors.Array]], answer: tensors.Answered
    ) -> Reply:
        predictions = [
            _nested(next(iter(one.values())))
            if len(one) == 1
            else {name: _nested(array) for name, array in one.items()}
            for one in answers
        ]
        return self._reply("predictions", predictions, answer)

    async def _one_by_one(self, rows: list[Columns]) -> list[tensors.Answered]:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(row: Columns) -> tensors.Answered:
            async with places:
                return (await self._infer(row))[0]

        tasks = [asyncio.ensure_future(one(row)) for row in rows]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _infer(
        self, columns: Columns, *, rows: bool = False
    ) -> tuple[tensors.Answered, bool]:
        """And whether the values stood for a batch of one that was not written out. `rows`: they
        are one for each instance, so that they do not."""
        size = len(self._incoming.body)
        message, single = await apart(size, self._message, columns, rows)
        answer = await self._service.requests.answer(self._service.request(message, self._incoming))
        return tensors.answered(answer.message), single

    def _message(self, columns: Columns, rows: bool) -> tuple[bytes, bool]:
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
        return tensors.message(self._model, self._version, asked, memoryview(b"")), single

    def _fitted(self, declared: Any, value: object, rows: bool) -> tuple[Input, bool]:
        """As the model takes it, and whether the batch's dimension was added. A last dimension of
        1 needs no brackets."""
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

    def _is_row(self, one: object) -> bool:
        return isinstance(one, dict) and one.keys() != {"b64"}

    def _alone(self, value: object) -> Columns:
        if len(self._config.input) != 1:
            raise _refused(f"say which input is which, by name. {_takes(self._config)}")
        return {self._config.input[0].name: value}

    def _reply(self, name: str, found: Any, answer: tensors.Answered) -> Reply:
        response = answer.response
        return of_json(
            {name: found, "model": response.model_name, "version": response.model_version}
        )


def _named(incoming: Incoming) -> tuple[str, str]:
    model, _, version = incoming.path["id"].partition(":")
    return model, version


def _document(incoming: Incoming, service: Service) -> dict[str, Any]:
    try:
        asked = service.json(incoming.body)
    except Refused as refused:
        raise _refused(refused.text) from refused
    if not isinstance(asked, dict):
        raise _refused("the body has to be a JSON object")
    return asked


def _parameters(asked: dict[str, Any]) -> dict[str, Any]:
    given = asked.get("parameters", {})
    if not isinstance(given, dict):
        raise _refused("'parameters' has to be an object")
    return {name: scalar(name, value) for name, value in given.items()}


def _takes(config: Any) -> str:
    """What the model wants, in words."""
    batch = ["batch"] if config.max_batch_size else []
    inputs = (
        f"{one.name} ({model_info.datatype(one.data_type)}, "
        f"[{', '.join([*batch, *('any' if dim == -1 else str(dim) for dim in one.dims)])}])"
        for one in config.input
    )
    return f"It takes {', '.join(inputs)}."


def _shape(name: str, value: object) -> tuple[int, ...]:
    """Of nested lists, all of the same length at each depth. Raises Refused."""
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
    """Raises Refused. What has no word in JSON is made from numbers (FP16, BF16), or from
    `{"b64": text}` (bytes)."""
    as_numbers = "FP32" if datatype in ("FP16", "BF16") else datatype
    if datatype == "BYTES":
        data = _with_bytes(data)
    try:
        flat = elements(name, as_numbers, shape, data)
    except Refused as refused:
        raise _refused(f"input '{name}' cannot be read as {datatype}: {refused.text}") from refused
    return Input(name, datatype, shape, elements=flat)


def _with_bytes(data: Any) -> Any:
    if isinstance(data, list):
        return [_with_bytes(one) for one in data]
    if isinstance(data, dict) and data.keys() == {"b64"} and isinstance(data["b64"], str):
        try:
            return base64.b64decode(data["b64"], validate=True).decode("utf-8", "surrogateescape")
        except ValueError as error:
            raise _refused(f"a value under 'b64' is not base64: {error}") from error
    return data


def _arrays(answer: tensors.Answered) -> dict[str, tensors.Array]:
    return {
        output.name: tensors.array(output.name, output.datatype, output.shape, content)
        for output, content in zip(answer.response.outputs, answer.contents, strict=False)
    }


def _nested(found: Any) -> Any:
    """As `documents.dumps` writes it: bytes as text where they are text."""
    if isinstance(found, bytes):
        return _text(found)
    if not isinstance(found, np.ndarray):
        return tensors.plain(found)
    if found.dtype == np.object_:
        return [_nested(one) for one in found]
    return tensors.plain(np.ascontiguousarray(found))


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _refused(text: str) -> Refused:
    return Refused(INVALID, text)
