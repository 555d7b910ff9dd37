"""What answers behind the HTTP port in tests, instead of models."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from tritonclient.grpc import model_config_pb2, service_pb2

from services.router.call import Call
from services.router.core.routing.metadata import CallerMetadata, Pairs, read_metadata
from services.router.servers.answers import InferReply
from services.router.unary.inference import Request


class Backend:
    """Gives every input back as an output, or does what `failing` is set to; `responses` come from
    a decoupled model. `gate`, `pause`: what it waits for, before all and after the first."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.calls: list[tuple[Any, Call]] = []
        self.failing: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.reached = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.pause: asyncio.Event | None = None
        self.closed = asyncio.Event()
        self.responses: list[bytes | Exception] = []
        self.decoupled = False

    def checked_metadata(self, metadata: Pairs) -> CallerMetadata:
        return read_metadata(metadata)

    async def answer(self, request: Request) -> InferReply:
        self.asked.append(request)
        self.reached.set()
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if self.failing is not None:
            raise self.failing
        asked = service_pb2.ModelInferRequest.FromString(request.message)
        answer = service_pb2.ModelInferResponse(
            model_name=asked.model_name, model_version="1", id=asked.id
        )
        for one in asked.inputs:
            answer.outputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        answer.raw_output_contents.extend(asked.raw_input_contents)
        trailing = (("x-shoal-route", "arm a"), ("else", "b"))
        return InferReply(answer.SerializeToString(), cold=False, server="a", trailing=trailing)

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        self.asked.append(request)
        try:
            for number, response in enumerate(self.responses):
                if number and self.pause is not None:
                    await self.pause.wait()
                if isinstance(response, Exception):
                    raise response
                yield response
        finally:
            self.closed.set()

    async def config(self, request: Any, call: Call) -> Any:
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=0)
        config.input.add(name="X", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
        config.model_transaction_policy.decoupled = self.decoupled
        return service_pb2.ModelConfigResponse(config=config)

    async def load(self, request: Any, call: Call) -> Any:
        self.calls.append((request, call))
        if self.failing is not None:
            raise self.failing
        return service_pb2.RepositoryModelLoadResponse()
