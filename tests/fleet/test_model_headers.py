"""Headers that a model asks for: `--grpc-header-forward-pattern`, given to `shoal up`."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import urllib3

from services.embedded.background import BackgroundStack
from tests.conformance.models import CODE, TOLD
from tests.support.direct_calls import tensors

pytestmark = pytest.mark.triton

CONFIG = """backend: "python"
input [{ name: "ANY" data_type: TYPE_INT32 dims: [1] }]
output [{ name: "SEEN" data_type: TYPE_STRING dims: [1] }]
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundStack]:
    repository = tmp_path_factory.mktemp("models")
    (repository / "told" / "1").mkdir(parents=True)
    (repository / "told" / "config.pbtxt").write_text(CONFIG)
    (repository / "told" / "1" / "model.py").write_text(CODE + TOLD)
    options = {"SHOAL_TRITON_OPTION": "'--grpc-header-forward-pattern=.*' --log-verbose=0"}
    with BackgroundStack(f"--repository={repository}", "--no-otlp", environment=options) as running:
        yield running


def seen(text: str) -> dict[str, Any]:
    """Return the parameters that the model saw, but for what gRPC itself adds."""
    parameters: dict[str, Any] = json.loads(text)["parameters"]
    return {name: value for name, value in parameters.items() if name != "user-agent"}


def test_a_model_sees_the_metadata_of_a_grpc_call(stack: BackgroundStack) -> None:
    sent = {"x-request-id": "7", "authorization": "Bearer me", "session": "a", "x-shoal-roles": "b"}
    with contextlib.closing(triton.InferenceServerClient(stack.router_grpc)) as client:
        given = tensors({"ANY": np.array([1], np.int32)})
        answer = client.infer("told", given, headers=sent, client_timeout=30)
    text = answer.as_numpy("SEEN")[0].decode()
    assert seen(text) == {"x-request-id": "7", "authorization": "Bearer me", "session": "a"}


@pytest.mark.parametrize("route", ["infer", "generate"])
def test_a_model_sees_some_headers_of_an_http_request(stack: BackgroundStack, route: str) -> None:
    sent = {"X-Request-ID": "7", "Authorization": "Bearer me", "baggage": "k=v", "Session": "a"}
    inputs = [{"name": "ANY", "datatype": "INT32", "shape": [1], "data": [1]}]
    body = {"inputs": inputs} if route == "infer" else {"ANY": 1}
    url = f"http://{stack.router_http}/v2/models/told/{route}"
    answer = urllib3.request("POST", url, json=body, headers=sent, timeout=30)
    assert answer.status == 200, answer.data
    found = answer.json()["outputs"][0]["data"][0] if route == "infer" else answer.json()["SEEN"]
    assert seen(found) == {"x-request-id": "7", "authorization": "Bearer me", "baggage": "k=v"}
