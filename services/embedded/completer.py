"""The Triton that completes configs: started when the Registry has some, stopped when idle.

The stack's servers run without auto-completion, because models load ten times faster so.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import structlog
from tritonclient.grpc import service_pb2_grpc

from services.common import channels
from services.embedded.completing import Completing, NotCompleted, ServerLost, completed
from services.embedded.keeper import Keeper
from services.embedded.part import BackOff
from shoal.names import ModelVersionName, parse_version_name
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

IDLE_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 1.0
START_RETRY_SECONDS: Final = 30.0
CALL_SECONDS: Final = 60.0

_COULD_NOT: Final = "a Triton that was asked to complete its config could not"

_log = structlog.get_logger(__name__)


class Completer:
    """Completes the versions that wait in the Registry, one at a time."""

    def __init__(self, server: Completing, registry: str) -> None:
        self._server = server
        self._registry = registry
        self._order: list[ModelVersionName] = []
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Complete what waits, for ever. Nothing is left running when it is cancelled."""
        async with channels.control(self._registry) as channel, asyncio.TaskGroup() as tasks:
            stub: Any = RegistryServiceStub(channel)
            tasks.create_task(self._follow(stub))
            while True:
                await self._wait(None)
                await self._with_server(stub)

    async def _follow(self, stub: Any) -> None:
        """Keep the order of the versions that wait."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for response in stub.WatchCompletions(pb.WatchCompletionsRequest()):
                    found = map(parse_version_name, response.versions)
                    self._order = [name for name in found if name is not None]
                    self._news.set()
            await asyncio.sleep(RETRY_SECONDS)

    async def _wait(self, seconds: float | None) -> bool:
        """Wait until a version waits, for at most `seconds`; return whether one does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._order:
                    self._news.clear()
                    await self._news.wait()
        return bool(self._order)

    async def _with_server(self, stub: Any) -> None:
        """Start the server, and stop it once nothing has waited for a while."""
        async with _running(self._server) as keeper:
            await keeper.settled.wait()
            if keeper.failure is not None:
                _log.warning("no configs can be completed", cause=keeper.failure)
                await asyncio.sleep(START_RETRY_SECONDS)
                return
            # A server that comes back on the same port must not meet the old connection.
            own_connection = ("grpc.use_local_subchannel_pool", 1)
            async with channels.control(self._server.address, (own_connection,)) as channel:
                triton: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                while await self._wait(IDLE_SECONDS):
                    try:
                        await self._complete(stub, triton, self._order.pop(0))
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(RETRY_SECONDS)  # the Registry is away
                    except ServerLost:
                        return

    async def _complete(self, stub: Any, triton: Any, name: ModelVersionName) -> None:
        """Complete one version. Raises ServerLost, and AioRpcError if the Registry is away."""
        wanted = pb.GetModelVersionRequest(name=str(name))
        try:
            version = (await stub.GetModelVersion(wanted, timeout=CALL_SECONDS)).version
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return
            raise
        if version.state != types_pb2.VERSION_STATE_WAITING:
            return
        report = pb.ReportCompletionRequest(name=version.name, fingerprint=version.fingerprint)
        try:
            report.config = await completed(self._server, triton, name, version.config)
        except NotCompleted as error:
            report.problem = f"{_COULD_NOT}: {error}"
        except ServerLost as error:
            report.problem = f"{_COULD_NOT}: {error}"
            raise
        finally:
            if report.WhichOneof("outcome") is not None:
                await stub.ReportCompletion(report, timeout=CALL_SECONDS)


@contextlib.asynccontextmanager
async def _running(server: Completing) -> AsyncIterator[Keeper]:
    """Run the server. Leaving it kills the server and what it has started."""
    keeper = Keeper(server.part, lambda event: None, BackOff())
    running = asyncio.create_task(keeper.run(), name=server.part.name)
    try:
        yield keeper
    finally:
        at_once = asyncio.Event()
        at_once.set()
        await keeper.stop(at_once)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
