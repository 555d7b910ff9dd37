"""`/infer`: inference with tensors in JSON, in binary, or as the raw body."""

from math import prod
from typing import Any, Final

from services.router.control import model_info
from services.router.core.rest import headers
from services.router.core.rest.infer import SIZES, Infer, Input, parse_infer
from services.router.core.rest.values import INVALID, WrongRequest
from services.router.rest import tensors
from services.router.rest.documents import dumps, loads
from services.router.rest.incoming import HttpRequest
from services.router.rest.reply import (
    JSON,
    HttpReply,
    refused_reply,
    tensors_reply,
    visible_headers,
)
from services.router.rest.service import Service
from shoal.tensors import pack_elements

SIZE_HEADER: Final = b"inference-header-content-length"
_ACCEPTED: Final = (b"accept-encoding", b"gzip, deflate")


async def infer(incoming: HttpRequest, service: Service) -> HttpReply:
    """Answer an inference request."""
    model, version = incoming.path["model"], incoming.path.get("version", "")
    service.require_known(model, version)
    try:
        await incoming.decompress(service.max_body)
    except WrongRequest as refused:
        return refused_reply(refused)._replace(headers=(JSON, _ACCEPTED))
    size = headers.json_size(incoming.headers.get(SIZE_HEADER), len(incoming.body))
    if size:
        asked, message = await service.read(size, _read, model, version, incoming.body, size)
    else:
        asked = await _raw(incoming, service, model, version)
        message = tensors.message(model, version, asked, memoryview(incoming.body))
    return await answered(message, asked, incoming, service)


def _read(model: str, version: str, body: bytes, size: int) -> tuple[Infer, bytes]:
    """Return what is asked, without its inputs, and the message that asks it. `size` is the bytes
    of JSON."""
    whole = memoryview(body)
    asked = parse_infer(loads(whole[:size]))
    return asked._replace(inputs=()), tensors.message(model, version, asked, whole[size:])


async def answered(
    message: bytes, asked: Infer, incoming: HttpRequest, service: Service
) -> HttpReply:
    """Send a serialized ModelInferRequest and return its answer in the form that `asked` wants."""
    answer = await service.inference.answer(service.request(message, incoming))
    found = tensors.decoded(answer.message)
    size = tensors.json_size(found, asked)
    text, binary = await service.converter.run(size, _written, found, asked)
    return await tensors_reply(
        text,
        binary,
        incoming.headers.get(b"accept-encoding"),
        visible_headers(answer.trailing),
    )


def _written(answer: tensors.Decoded, asked: Infer) -> tuple[bytes, list[memoryview]]:
    """Return an answer's JSON, and the binary part that follows it."""
    document, binary = tensors.json_parts(answer, asked)
    return dumps(document), binary


# --- a body that is one tensor and nothing else ---------------------------------------------------


async def _raw(incoming: HttpRequest, service: Service, model: str, version: str) -> Infer:
    """Return a request whose body is the model's only input, in the shape that its size allows."""
    reply = await service.call("ModelConfig", incoming, name=model, version=version)
    config = reply.config
    inputs = config.input
    if len(inputs) != 1:
        raise _refused(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(inputs)} "
            f"inputs in '{model}' model configuration"
        )
    return Infer(inputs=(_deduced(incoming, inputs[0], config.max_batch_size),), binary=True)


def _deduced(incoming: HttpRequest, declared: Any, max_batch: int) -> Input:
    size = len(incoming.body)
    datatype = model_info.datatype(declared.data_type)
    shape = [1] * bool(max_batch) + list(declared.dims)
    if shape.count(-1) > 1:
        raise _refused(
            f"The shape of the raw input '{declared.name}' can not be deduced because there are "
            "more than one variable-sized dimension"
        )
    fixed = prod(dim for dim in shape if dim != -1)
    if datatype == "BYTES":
        if -1 in shape or fixed != 1:
            raise _refused(
                f"For BYTE datatype raw input '{declared.name}', the model must have input shape "
                "[1]"
            )
        incoming.body = pack_elements([incoming.body])
        size = len(incoming.body)
    elif -1 in shape:
        shape[shape.index(-1)] = size // (fixed * SIZES[datatype])
    return Input(declared.name, datatype, tuple(shape), size=size)


def _refused(text: str) -> WrongRequest:
    return WrongRequest(INVALID, f"[request id: <id_unknown>] {text}")
