"""A server that speaks as much of Triton's protocol as a Router needs, and does as it is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tests.support.grpc_servers import listening

SERVICE = "inference.GRPCInferenceService"


class ScriptedTriton:
    """Answers inference once `answering` is set, and notes what comes.

    `error` is the text of a model's error, which every request gets instead of an answer."""

    def __init__(self, version: str = "2.51.0", error: str = "") -> None:
        self.version = version
        self.error = error
        self.answering = asyncio.Event()
        self.address = ""
        #: Requests that came, apart from the openings of streams and probes.
        self.asked: list[Any] = []
        #: The models of requests that were cancelled.
        self.cancelled: list[str] = []

    def handler(self) -> grpc.GenericRpcHandler:
        pb = service_pb2
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ServerMetadata": grpc.unary_unary_rpc_method_handler(
                    self._metadata,
                    response_serializer=pb.ServerMetadataResponse.SerializeToString,
                ),
                "ModelInfer": grpc.unary_unary_rpc_method_handler(
                    self._infer,
                    request_deserializer=pb.ModelInferRequest.FromString,
                    response_serializer=pb.ModelInferResponse.SerializeToString,
                ),
                "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                    self._stream,
                    request_deserializer=pb.ModelInferRequest.FromString,
                    response_serializer=pb.ModelStreamInferResponse.SerializeToString,
                ),
            },
        )

    async def _metadata(self, request: bytes, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)

    async def _infer(self, request: Any, context: Any) -> Any:
        if self.error:
            await context.abort(grpc.StatusCode.INTERNAL, self.error)
        return await self._answer(request)

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> None:
        async for request in requests:
            if not request.inputs:  # an opening, or a probe
                reply = service_pb2.ModelStreamInferResponse(error_message="no such model")
                reply.infer_response.id = request.id
            else:
                reply = service_pb2.ModelStreamInferResponse()
                reply.infer_response.CopyFrom(await self._answer(request))
                reply.infer_response.parameters["triton_final_response"].bool_param = True
            await context.write(reply)

    async def _answer(self, request: Any) -> Any:
        self.asked.append(request)
        try:
            await self.answering.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.model_name)
            raise
        reply = service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version="1", id=request.id
        )
        reply.outputs.add(name="OUTPUT", datatype="FP32", shape=[1])
        reply.raw_output_contents.append(bytes(4))
        return reply


@asynccontextmanager
async def scripted(triton: ScriptedTriton) -> AsyncIterator[ScriptedTriton]:
    """Serve until the end."""
    # A model's error is as long as it likes.
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((triton.handler(),))
    async with listening(server) as triton.address:
        yield triton
