"""The identity model in KServe's Python model server: `kserve_server.py GRPC_PORT HTTP_PORT`."""

import logging
import sys
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Identity(Model):
    def load(self) -> bool:
        self.ready = True
        return True

    async def predict(self, payload: InferRequest, *_: Any) -> InferResponse:
        numbers = payload.get_input_by_name("INPUT").as_numpy()
        output = InferOutput("OUTPUT", list(numbers.shape), "FP32")
        output.set_data_from_numpy(numbers, binary_data=payload.use_binary_outputs)
        return InferResponse(
            payload.id, self.name, [output], use_binary_outputs=payload.use_binary_outputs
        )


def main() -> None:
    grpc_port, http_port = map(int, sys.argv[1:])
    model = Identity("bench_identity")
    model.load()
    server = ModelServer(grpc_port=grpc_port, http_port=http_port, enable_latency_logging=False)
    logging.getLogger("kserve").setLevel(logging.WARNING)  # else a line for each request
    server.start([model])


if __name__ == "__main__":
    main()
