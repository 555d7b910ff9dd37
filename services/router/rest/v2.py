"""The routes under /v2 that are one RPC each: JSON to a message, and a message to JSON."""

import base64
from typing import Any, Final

from services.router.core.rest.values import (
    INVALID,
    MISSING,
    UNSUPPORTED,
    WrongRequest,
    array,
    boolean,
    find,
    member,
    members,
    string,
    unsigned,
    wrong,
)
from services.router.rest.documents import loads
from services.router.rest.incoming import HttpRequest
from services.router.rest.messages import document
from services.router.rest.reply import HttpReply, error_reply, json_reply
from services.router.rest.service import Service

EMPTY: Final = HttpReply(headers=((b"content-type", b"text/plain"),))
_EMPTY_JSON: Final = HttpReply()


# --- server and models ----------------------------------------------------------------------------


async def live(incoming: HttpRequest, service: Service) -> HttpReply:
    """Return whether the Router runs. Triton's own answer has no body, but KServe's client wants
    one."""
    reply = await service.call("ServerLive", incoming)
    return json_reply({"live": reply.live}, 200 if reply.live else 400)


async def ready(incoming: HttpRequest, service: Service) -> HttpReply:
    reply = await service.call("ServerReady", incoming)
    return json_reply({"ready": reply.ready}, 200 if reply.ready else 400)


async def server(incoming: HttpRequest, service: Service) -> HttpReply:
    return json_reply(document(await service.call("ServerMetadata", incoming)))


async def model_ready(incoming: HttpRequest, service: Service) -> HttpReply:
    reply = await service.call("ModelReady", incoming, **_name_and_version(incoming))
    return EMPTY if reply.ready else error_reply(400, "Model version not ready")


async def model(incoming: HttpRequest, service: Service) -> HttpReply:
    return json_reply(
        document(await service.call("ModelMetadata", incoming, **_name_and_version(incoming)))
    )


async def config(incoming: HttpRequest, service: Service) -> HttpReply:
    reply = await service.call("ModelConfig", incoming, **_name_and_version(incoming))
    return json_reply(document(reply.config))


async def statistics(incoming: HttpRequest, service: Service) -> HttpReply:
    reply = await service.call("ModelStatistics", incoming, **_name_and_version(incoming))
    return json_reply(document(reply))


def _name_and_version(incoming: HttpRequest) -> dict[str, str]:
    return {
        "name": incoming.path.get("model", ""),
        "version": incoming.path.get("version", ""),
    }


# --- the repository -------------------------------------------------------------------------------


async def index(incoming: HttpRequest, service: Service) -> HttpReply:
    asked = service.json(incoming.body) if incoming.body else {}
    ready_only = find(asked, "ready")
    reply = await service.call(
        "RepositoryIndex",
        incoming,
        ready=ready_only is not MISSING and boolean(ready_only),
    )
    rows = [{key: value for key, value in document(row).items() if value} for row in reply.models]
    return json_reply(rows)


async def load(incoming: HttpRequest, service: Service) -> HttpReply:
    _no_repository(incoming)
    body = incoming.body
    parameters = await service.read(len(body), _load_parameters, body)
    await service.call(
        "RepositoryModelLoad", incoming, model_name=incoming.path["model"], parameters=parameters
    )
    return _EMPTY_JSON


def _load_parameters(body: bytes) -> dict[str, Any]:
    """Return the parameters of a load, which may hold whole files."""
    parameters: dict[str, Any] = {}
    given = find(loads(body) if body else {}, "parameters")
    for name, value in ({} if given is MISSING else members(given)).items():
        text = string(value)
        if name == "config":
            parameters[name] = {"string_param": text}
        elif name.startswith("file:"):
            parameters[name] = {"bytes_param": _from_base64(text)}
        else:
            raise wrong("unexpected error on creating Triton parameter")
    return parameters


async def unload(incoming: HttpRequest, service: Service) -> HttpReply:
    _no_repository(incoming)
    asked = service.json(incoming.body) if incoming.body else {}
    dependents = find(find(asked, "parameters"), "unload_dependents")
    parameters: dict[str, Any] = {}
    if dependents is not MISSING:
        flag = boolean(dependents, "Unable to parse 'unload_dependents'")
        parameters["unload_dependents"] = {"bool_param": flag}
    await service.call(
        "RepositoryModelUnload", incoming, model_name=incoming.path["model"], parameters=parameters
    )
    return _EMPTY_JSON


def _no_repository(incoming: HttpRequest) -> None:
    if "repository" in incoming.path:
        raise WrongRequest(UNSUPPORTED, "'repository_name' specification is not supported")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError:
        return b""


# --- settings -------------------------------------------------------------------------------------


async def trace(incoming: HttpRequest, service: Service) -> HttpReply:
    settings: dict[str, Any] = {}
    if incoming.method == "POST":
        for name, value in members(service.json(incoming.body)).items():
            settings[name] = {"value": _setting(name, value)}
    reply = await service.call(
        "TraceSetting", incoming, model_name=incoming.path.get("model", ""), settings=settings
    )
    found = {name: list(setting.value) for name, setting in reply.settings.items()}
    return json_reply(
        {
            name: values if name == "trace_level" else "".join(values)
            for name, values in sorted(found.items())
        }
    )


def _setting(name: str, value: object) -> list[str]:
    """Return the values of a setting. No value stands for "as it is globally"."""
    if value is None:
        return []
    if name == "trace_level":
        return [string(level) for level in array(value)]
    return [string(value)]


async def logging(incoming: HttpRequest, service: Service) -> HttpReply:
    settings: dict[str, Any] = {}
    if incoming.method == "POST":
        for name, value in members(service.json(incoming.body)).items():
            if value is not None:
                settings[name] = _log_setting(name, value)
    reply = await service.call("LogSettings", incoming, settings=settings)
    return json_reply(
        {
            name: getattr(setting, setting.WhichOneof("parameter_choice") or "string_param")
            for name, setting in sorted(reply.settings.items())
        }
    )


def _log_setting(name: str, value: object) -> dict[str, Any]:
    if name in ("log_info", "log_warning", "log_error"):
        return {"bool_param": boolean(value)}
    if name == "log_verbose_level":
        return {"uint32_param": unsigned(value) & 0xFFFFFFFF}
    return {"string_param": string(value)}


# --- shared memory --------------------------------------------------------------------------------


async def system_status(incoming: HttpRequest, service: Service) -> HttpReply:
    return await _status("System", incoming, service)


async def cuda_status(incoming: HttpRequest, service: Service) -> HttpReply:
    return await _status("Cuda", incoming, service)


async def system_unregister(incoming: HttpRequest, service: Service) -> HttpReply:
    return await _unregister("System", incoming, service)


async def cuda_unregister(incoming: HttpRequest, service: Service) -> HttpReply:
    return await _unregister("Cuda", incoming, service)


async def system_register(incoming: HttpRequest, service: Service) -> HttpReply:
    name = _region(incoming, "system")
    asked = service.json(incoming.body)
    key = string(_required(asked, "key"))
    offset = find(asked, "offset")
    await service.call(
        "SystemSharedMemoryRegister",
        incoming,
        name=name,
        key=key,
        offset=0 if offset is MISSING else unsigned(offset),
        byte_size=unsigned(_required(asked, "byte_size")),
    )
    return _EMPTY_JSON


async def cuda_register(incoming: HttpRequest, service: Service) -> HttpReply:
    name = _region(incoming, "cuda")
    asked = service.json(incoming.body)
    handle = string(member(_required(asked, "raw_handle"), "b64"))
    await service.call(
        "CudaSharedMemoryRegister",
        incoming,
        name=name,
        raw_handle=_from_base64(handle),
        byte_size=unsigned(member(asked, "byte_size")),
        device_id=unsigned(member(asked, "device_id")),
    )
    return _EMPTY_JSON


async def _status(kind: str, incoming: HttpRequest, service: Service) -> HttpReply:
    reply = await service.call(
        f"{kind}SharedMemoryStatus", incoming, name=incoming.path.get("region", "")
    )
    return json_reply([document(region) for _, region in sorted(reply.regions.items())])


async def _unregister(kind: str, incoming: HttpRequest, service: Service) -> HttpReply:
    await service.call(
        f"{kind}SharedMemoryUnregister", incoming, name=incoming.path.get("region", "")
    )
    return _EMPTY_JSON


def _region(incoming: HttpRequest, kind: str) -> str:
    name = incoming.path.get("region", "")
    if not name:
        raise WrongRequest(
            INVALID, f"'region name' is necessary to register {kind} shared memory region"
        )
    return name


def _required(asked: object, name: str) -> Any:
    found = find(asked, name)
    if found is MISSING:
        raise WrongRequest(INVALID, f"Shared memory register request has no '{name}' field")
    return found
