"""What KServe's own Python client makes of a server: asks it in every way, and prints the answers.

Run by test_kserve_client.py in an environment that has kserve: GRPC HTTP, each host:port.
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

MODEL = "multiplier"


def asked(binary: bool = False) -> Any:
    tensor = InferInput(name="INPUT", shape=[1, 3], datatype="FP32")
    tensor.set_data_from_numpy(np.array([[1, 2, 3]], np.float32), binary_data=binary)
    return InferRequest(model_name=MODEL, infer_inputs=[tensor])


async def over_grpc(address: str) -> dict[str, Any]:
    client = InferenceGRPCClient(address)
    try:
        answer = await client.infer(asked())
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model": await client.is_model_ready(MODEL),
            "nobody": await client.is_model_ready("nobody"),
            "output": answer.outputs[0].as_numpy().tolist(),
        }
    finally:
        await client.close()


async def over_http(base: str) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    try:
        plain, packed = [
            await client.infer(base, asked(binary), model_name=MODEL) for binary in (False, True)
        ]
        return {
            "live": await client.is_server_live(base),
            "ready": await client.is_server_ready(base),
            "model": await client.is_model_ready(base, MODEL),
            "output": plain.outputs[0].as_numpy().tolist(),
            "binary": packed.outputs[0].as_numpy().tolist(),
        }
    finally:
        await client.close()


async def by_the_first_protocol(base: str) -> Any:
    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    try:
        return await client.infer(base, {"instances": [[1, 2, 3]]}, model_name=MODEL)
    finally:
        await client.close()


async def main(grpc_address: str, http_address: str) -> None:
    base = f"http://{http_address}"
    found = {
        "grpc": await over_grpc(grpc_address),
        "http": await over_http(base),
        "v1": await by_the_first_protocol(base),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
