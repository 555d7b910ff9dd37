"""The client of one Triton's own gRPC API. Nobody but the Controller has its admin key."""

import asyncio
import json
import struct
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.common import channels
from services.controller.core.entities import Unit
from services.controller.triton.config import config_override
from services.controller.triton.statistics import Statistics, by_unit
from shoal.names import parse_version

SERVICE: Final = "inference.GRPCInferenceService"
ADMIN_KEY_HEADER: Final = "triton-grpc-protocol-admin-key"

READY: Final = "READY"
UNLOADED: Final = "unloaded"  # the reason in the index, unless a load has failed
LOADING: Final = "LOADING"
UNLOADING: Final = "UNLOADING"
BUSY: Final = frozenset({LOADING, UNLOADING})
POLL_SECONDS: Final = 0.05
SOON_SECONDS: Final = 0.005
IDLE_UNLOAD_SECONDS: Final = 1.0
CALL_SECONDS: Final = 2.0
SELFCHECK_SECONDS: Final = 60.0
SELFCHECK_VALUES: Final = (1.5, -2.25, 3.0)

# A model that no server can load.
_NO_MODEL: Final = "shoal-auto-completion"
_NO_CONFIG: Final = json.dumps(
    {
        "backend": "shoal_none",
        "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [4], "reshape": {"shape": [3]}}],
        "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [1]}],
    }
)

Index = Mapping[Unit, tuple[str, str]]


class TritonGone(Exception):
    """The server does not answer."""


class TritonRefused(Exception):
    """The server refused, in its own words."""


class TritonSlow(Exception):
    """A load or an unload did not end in time. It may still end."""


class Deadline(NamedTuple):
    """A point in time: `seconds` after `began`, by time.monotonic()."""

    began: float
    seconds: float

    @classmethod
    def within(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic(), seconds)

    @property
    def left(self) -> float:
        return max(0.0, self.began + self.seconds - time.monotonic())

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began


def until_next_look(state: str, spent: float) -> float:
    """Return the seconds to wait before the next look at the index.

    An idle Python model takes a little over a second to unload, and what waits for its memory
    should hear of that soon.
    """
    if state == UNLOADING and spent < IDLE_UNLOAD_SECONDS:
        return min(POLL_SECONDS, IDLE_UNLOAD_SECONDS - spent)
    return SOON_SECONDS if spent < 2 * IDLE_UNLOAD_SECONDS else POLL_SECONDS


async def _while(lives: Callable[[], bool], seconds: float) -> None:
    """Return once `lives()` is false, or after `seconds`.

    A look at a process costs next to nothing; a look at an index keeps two processes busy.
    """
    end = time.monotonic() + seconds
    while lives() and time.monotonic() < end:  # noqa: ASYNC110  nothing announces the end of a process
        await asyncio.sleep(SOON_SECONDS)


def _never() -> bool:
    return False


class Triton:
    """One Triton.

    `id`: what it was started with as --id. `address`: host:port of its gRPC endpoint.
    """

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
        """Return the id that the server says it has.

        Raises TritonGone.
        """
        reply = await self._call(self._stub.ServerMetadata, service_pb2.ServerMetadataRequest())
        return str(reply.name)

    async def index(self) -> Index:
        """Return the state and reason of every unit that the server knows.

        Raises TritonGone.
        """
        reply = await self._call(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest())
        found: dict[Unit, tuple[str, str]] = {}
        for row in reply.models:
            version = parse_version(row.version)
            if version is not None:
                found[Unit(row.name, version)] = (row.state, row.reason)
        return found

    async def model_statistics(self, unit: Unit | None = None) -> Any:
        """Return an inference.ModelStatistics of every READY unit, or of `unit` alone.

        Raises TritonGone, also when `unit` is not READY.
        """
        request = service_pb2.ModelStatisticsRequest()
        if unit is not None:
            request.name, request.version = unit.model, str(unit.version)
        return (await self._call(self._stub.ModelStatistics, request)).model_stats

    async def statistics(self) -> Mapping[Unit, Statistics]:
        """Return the statistics of every READY unit.

        Raises TritonGone.
        """
        rows = by_unit(await self.model_statistics())
        return {unit: Statistics.of(row) for unit, row in rows.items()}

    async def config(self, unit: Unit) -> bytes:
        """Return the serialized inference.ModelConfig of a READY unit, as Triton has completed it.

        Raises TritonRefused when the unit is not READY, TritonGone.
        """
        request = service_pb2.ModelConfigRequest(name=unit.model, version=str(unit.version))
        try:
            reply = await self._stub.ModelConfig(
                request, metadata=self._metadata, timeout=CALL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            await self.index()  # raises TritonGone where the server itself does not answer
            raise TritonRefused(f"{error.code().name}: {error.details()}") from error
        return bytes(reply.config.SerializeToString())

    async def apply(
        self, config: bytes, versions: tuple[int, ...], unit: Unit, timeout: float
    ) -> None:
        """Have exactly `versions` of the model loaded, and wait until `unit` is READY.

        `config`: a serialized inference.ModelConfig. Raises TritonRefused with Triton's reason,
        TritonSlow when it is not over after `timeout` seconds, TritonGone. The call's deadline does
        not end a load.
        """
        deadline = Deadline.within(timeout)
        await self._loaded(unit.model, deadline)
        over = await self._want(config, versions, unit, deadline)
        state, reason = await self.settled(unit, deadline)
        if state == READY:
            return
        if not over:  # somebody else's call came first, and Triton holds this one back
            raise TritonSlow(f"the load of {unit} was not begun within {timeout:.3g} s")
        raise TritonRefused(reason or f"{unit} is {state or 'not in the index'} after the load")

    async def drop(
        self,
        config: bytes,
        versions: tuple[int, ...],
        unit: Unit,
        timeout: float,
        ended: Callable[[], bool] = _never,
        lives: Callable[[], bool] = _never,
    ) -> None:
        """Leave only `versions` of the model loaded, and wait until `unit` is gone or `ended()`.

        `lives`: whether a process of the unit is seen. Without one, the unit is gone soon.

        Raises TritonRefused, TritonSlow when it is not over after `timeout` seconds, TritonGone.
        """
        deadline = Deadline.within(timeout)
        await self._loaded(unit.model, deadline)
        if versions:
            over = await self._want(config, versions, unit, deadline)
        else:
            unload = service_pb2.RepositoryModelUnloadRequest(model_name=unit.model)
            over = await self._change(self._stub.RepositoryModelUnload, unload, deadline)
        state, _ = await self.settled(unit, deadline, ended, lives)
        if state == READY:
            still = f"{unit} is still READY after it was unloaded"
            raise TritonRefused(still) if over else TritonSlow(still)

    async def settled(
        self,
        unit: Unit,
        deadline: Deadline,
        ended: Callable[[], bool] = _never,
        lives: Callable[[], bool] = _never,
    ) -> tuple[str, str]:
        """Return the unit's state and reason once it is neither LOADING nor UNLOADING.

        A unit that is UNLOADING counts as settled when `ended()`. Raises TritonSlow when the
        deadline has passed, TritonGone.
        """
        while True:
            state, reason = (await self.index()).get(unit, ("", ""))
            if state not in BUSY or (state == UNLOADING and ended()):
                return state, reason
            if not deadline.left:
                raise TritonSlow(f"{unit} is still {state} after {deadline.seconds:.3g} s")
            if state == UNLOADING and lives():
                await _while(lives, POLL_SECONDS)
            else:
                await asyncio.sleep(until_next_look(state, deadline.spent))

    async def probe(self, unit: Unit, request: bytes, timeout: float) -> None:
        """Send the unit `request`, a serialized inference.ModelInferRequest, and await its answer.

        Raises TritonRefused when it answers with an error or not within `timeout` seconds,
        TritonGone.
        """
        try:
            message = service_pb2.ModelInferRequest.FromString(request)
        except DecodeError as error:
            raise TritonRefused(f"the probe of {unit} is no ModelInferRequest: {error}") from error
        message.model_name, message.model_version = unit.model, str(unit.version)
        try:
            await self._stub.ModelInfer(message, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TritonRefused(
                    f"the probe of {unit} was not answered within {timeout:.3g} s"
                ) from error
            await self.index()  # raises TritonGone where the server itself does not answer
            raise TritonRefused(
                f"the probe of {unit} was answered {error.code().name}: {error.details()}"
            ) from error

    async def completes_configs(self) -> bool:
        """Return whether the server runs with auto-completion.

        It is asked to load a model that names no backend of its own, so that nothing is loaded.
        With auto-completion it looks for the backend first, because that could complete the shapes,
        which contradict each other. Raises TritonGone.
        """
        load = service_pb2.RepositoryModelLoadRequest(model_name=_NO_MODEL)
        load.parameters["config"].string_param = _NO_CONFIG
        load.parameters["file:1/model"].bytes_param = b"none"
        try:
            await self._stub.RepositoryModelLoad(
                load, metadata=self._metadata, timeout=SELFCHECK_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise TritonGone(f"{error.code().name}: {error.details()}") from error
            return error.code() is grpc.StatusCode.INVALID_ARGUMENT
        return False

    async def selfcheck(self, model: str) -> str | None:
        """Load an identity model, ask it, compare its answer and unload it.

        Returns what is wrong with the server's answers; None when nothing is. Raises TritonGone.
        """
        deadline = Deadline.within(SELFCHECK_SECONDS)
        load = service_pb2.RepositoryModelLoadRequest(model_name=model)
        try:
            await self._change(self._stub.RepositoryModelLoad, load, deadline)
            problem = await self._identity_problem(model)
            unload = service_pb2.RepositoryModelUnloadRequest(model_name=model)
            await self._change(self._stub.RepositoryModelUnload, unload, deadline)
            await self.settled(Unit(model, 1), deadline)
        except (TritonRefused, TritonSlow) as refusal:
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

    async def ask(self, method: str, request: bytes, timeout: float) -> bytes:
        """Make any call of Triton's service; return its serialized response.

        Raises AioRpcError.
        """
        call: Any = self._channel.unary_unary(f"/{SERVICE}/{method}")
        return bytes(await call(request, metadata=self._metadata, timeout=timeout))

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise TritonGone(f"{error.code().name}: {error.details()}") from error

    async def _loaded(self, model: str, deadline: Deadline) -> None:
        """Return once no version of the model is LOADING.

        Until then Triton holds back calls about the model. Release 24.10 was seen to die of
        SIGSEGV, rarely, when such a load ended while an unload was held back.
        """
        for unit, (state, _) in (await self.index()).items():
            if unit.model == model and state == LOADING:
                await self.settled(unit, deadline)

    async def _want(
        self, config: bytes, versions: tuple[int, ...], unit: Unit, deadline: Deadline
    ) -> bool:
        request = service_pb2.RepositoryModelLoadRequest(model_name=unit.model)
        request.parameters["config"].string_param = config_override(config, versions)
        return await self._change(self._stub.RepositoryModelLoad, request, deadline)

    async def _change(self, method: Any, request: Any, deadline: Deadline) -> bool:
        """Make a call; return whether it ended in time. If not, it goes on inside the server."""
        try:
            await method(request, metadata=self._metadata, timeout=deadline.left)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return False
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise TritonGone(f"{error.code().name}: {error.details()}") from error
            raise TritonRefused(error.details() or error.code().name) from error
        return True
