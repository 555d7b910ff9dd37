"""What Ray Serve serves: the identity model, multiplexed by the caller's `multiplexed_model_id`."""

from collections.abc import Callable

from grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from ray import serve

Model = Callable[[bytes], bytes]


@serve.deployment(
    max_ongoing_requests=100,
    logging_config={"enable_access_log": False},
)
class Models:
    @serve.multiplexed(max_num_models_per_replica=3)
    async def model(self, name: str) -> Model:
        return lambda numbers: numbers

    async def ModelInfer(self, request: ModelInferRequest) -> ModelInferResponse:  # noqa: N802
        model = await self.model(serve.get_multiplexed_model_id())
        answer = ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="OUTPUT", datatype="FP32", shape=request.inputs[0].shape)
        answer.raw_output_contents.append(model(request.raw_input_contents[0]))
        return answer
