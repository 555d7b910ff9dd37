"""One Triton, driven through its own gRPC API. Only the Controller has its admin key."""

import asyncio
import json
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from services.common import channels
from services.controller.core.entities import Unit
from shoal.names import parse_version

ADMIN_KEY_HEADER: Final = "triton-grpc-protocol-admin-key"

READY: Final = "READY"
BUSY: Final = frozenset({"LOADING", "UNLOADING"})
POLL_SECONDS: Final = 0.02
CALL_SECONDS: Final = 2.0
SELFCHECK_VALUES: Final = (1.5, -2.25, 3.0)

Index = Mapping[Unit, tuple[str, str]]


class TritonGone(Exception):
    """The server does not answer."""


class TritonRefused(Exception):
    """The server answered that it can't: its own words."""


class Triton:
    """`id`: what it was started with as --id. `address`: host:port of its gRPC endpoint."""

    def __init__(self, id_: str, address: str, admin_key: str) -> None:
        self.id = id_
        self.address = address
        self._metadata = ((ADMIN_KEY_HEADER, admin_key),) if admin_key else ()
        # A server that comes back on the same port must not meet the old connection.
        own_connection = ("grpc.use_local_subchannel_pool", 1)
        self._channel = channels.control(address, (own_connection,))
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close(None)

    async def name(self) -> str:
        """The id that the server itself says it has. Raises TritonGone."""
        reply = await self._call(self._stub.ServerMetadata, service_pb2.ServerMetadataRequest())
        return str(reply.name)

    async def index(self) -> Index:
        """State and reason of every unit that the server knows of. Raises TritonGone."""
        reply = await self._call(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest())
        found: dict[Unit, tuple[str, str]] = {}
        for row in reply.models:
            version = parse_version(row.version)
            if version is not None:
                found[Unit(row.name, version)] = (row.state, row.reason)
        return found

    async def apply(
        self, config: bytes, versions: tuple[int, ...], unit: Unit, timeout: float
    ) -> None:
        """Have exactly `versions` of the model loaded, and wait until `unit` is READY.

        `config`: a serialized inference.ModelConfig. Raises TritonRefused with Triton's reason,
        TritonGone. The call's deadline does not end a load, so the index has the last word.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=unit.model)
        request.parameters["config"].string_param = config_override(config, versions)
        await self._change(self._stub.RepositoryModelLoad, request, timeout)
        state, reason = await self._settled(unit, timeout)
        if state != READY:
            raise TritonRefused(reason or f"{unit} is {state or 'not in the index'} after the load")

    async def drop(
        self, config: bytes, versions: tuple[int, ...], unit: Unit, timeout: float
    ) -> None:
        """Leave only `versions` of the model loaded, and wait until `unit` is gone.

        Raises TritonRefused (also when it is still there after `timeout` seconds), TritonGone.
        """
        if versions:
            request = service_pb2.RepositoryModelLoadRequest(model_name=unit.model)
            request.parameters["config"].string_param = config_override(config, versions)
            await self._change(self._stub.RepositoryModelLoad, request, timeout)
        else:
            unload = service_pb2.RepositoryModelUnloadRequest(model_name=unit.model)
            await self._change(self._stub.RepositoryModelUnload, unload, timeout)
        state, _ = await self._settled(unit, timeout)
        if state == READY:
            raise TritonRefused(f"{unit} is still READY after it was unloaded")

    async def selfcheck(self, model: str) -> str | None:
        """What is wrong with the server's answers, or None: an identity model is loaded, asked,
        compared and unloaded. Raises TritonGone."""
        load = service_pb2.RepositoryModelLoadRequest(model_name=model)
        try:
            await self._change(self._stub.RepositoryModelLoad, load, 60.0)
            problem = await self._identity_problem(model)
            unload = service_pb2.RepositoryModelUnloadRequest(model_name=model)
            await self._change(self._stub.RepositoryModelUnload, unload, 60.0)
            await self._settled(Unit(model, 1), 60.0)
        except TritonRefused as refusal:
            return f"the self-check model {model} cannot be loaded: {refusal}"
        return problem

    async def _identity_problem(self, model: str) -> str | None:
        request = service_pb2.ModelInferRequest(model_name=model)
        tensor = request.inputs.add(name="INPUT", datatype="FP32", shape=[len(SELFCHECK_VALUES)])
        tensor.contents.fp32_contents.extend(SELFCHECK_VALUES)
        try:
            reply = await self._stub.ModelInfer(request, timeout=10.0)
        except grpc.aio.AioRpcError as error:
            return f"the self-check model {model} fails: {error.details()}"
        want = struct.pack(f"<{len(SELFCHECK_VALUES)}f", *SELFCHECK_VALUES)
        if list(reply.raw_output_contents) != [want]:
            return (
                f"it answers an identity model wrongly ({sum(map(len, reply.raw_output_contents))}"
                f" bytes instead of {len(want)}): its Python models need numpy 1.26, newer ones "
                "give empty outputs"
            )
        return None

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise TritonGone(f"{error.code().name}: {error.details()}") from error

    async def _change(self, method: Any, request: Any, timeout: float) -> None:
        try:
            await method(request, metadata=self._metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return  # it goes on inside the server; the index will tell
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise TritonGone(f"{error.code().name}: {error.details()}") from error
            raise TritonRefused(error.details() or error.code().name) from error

    async def _settled(self, unit: Unit, timeout: float) -> tuple[str, str]:
        """The unit's state and reason once it is neither LOADING nor UNLOADING."""
        deadline = time.monotonic() + timeout
        while True:
            state, reason = (await self.index()).get(unit, ("", ""))
            if state not in BUSY:
                return state, reason
            if time.monotonic() > deadline:
                raise TritonRefused(f"{unit} is still {state} after {timeout:.0f} s")
            await asyncio.sleep(POLL_SECONDS)


def config_override(config: bytes, versions: tuple[int, ...]) -> str:
    """The `config` parameter that has exactly `versions` loaded.

    Triton takes the change in place only when all but `version_policy` and `instance_group` is
    identical to what it has, so the rest is passed on as it was registered.
    """
    message = model_config_pb2.ModelConfig.FromString(config)
    message.version_policy.Clear()
    message.version_policy.specific.versions.extend(versions)
    return json.dumps(MessageToDict(message, preserving_proto_field_name=True))
