"""The identity model in LitServe, over HTTP/1.1 and JSON: `litserve_server.py PORT`."""

import sys
from typing import Any

import litserve
import numpy as np


class Identity(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict[str, Any], **_: Any) -> np.ndarray:
        return np.asarray(request["INPUT"], np.float32)

    def predict(self, x: np.ndarray, **_: Any) -> np.ndarray:
        return x

    def encode_response(self, output: np.ndarray, **_: Any) -> dict[str, Any]:
        return {"OUTPUT": output.tolist()}


def main() -> None:
    server = litserve.LitServer(Identity(), accelerator="cpu")
    server.run("127.0.0.1", int(sys.argv[1]), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
