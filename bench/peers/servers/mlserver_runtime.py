"""The identity model as a runtime of MLServer, which imports it by name."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Identity(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        numbers = NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("OUTPUT", numbers)]
        )
