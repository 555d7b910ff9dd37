"""A decoupled version that is deleted while a Router still has its replies: the Triton is real."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from services.controller.core.entities import Server
from services.router.core.routes import Target
from shoal.names import model_name
from tests.fleet.triton_direct import triton_direct
from tests.services import controller_harness
from tests.services.controller_harness import entry
from tests.services.router_harness import router
from tests.services.triton_models import config, write, write_program
from tests.waiting import until

REPLIES = 8
MANY = f"""
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            x = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            for number in range({REPLIES}):
                output = pb_utils.Tensor("OUTPUT", x + number)
                sender.send(pb_utils.InferenceResponse([output]))
                time.sleep(0.2)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.mark.triton
async def test_others_know_of_it_until_it_is_unloaded(tmp_path: Path) -> None:
    """Or they would open streams in turns to plain models, which crash a Triton beside it."""
    many = config("many")
    many.model_transaction_policy.decoupled = True
    models = tmp_path / "models"
    write(models, "plain")
    write_program(models, many, MANY)
    entries = [
        entry("plain", 1, decoupled=False),
        entry("many", 1, config=many.SerializeToString(), decoupled=True),
    ]
    with triton_direct(tmp_path, models, id=f"t0-{secrets.token_hex(4)}") as server:
        keys = {server.spec.id: server.spec.admin_secret}
        fleet = [Server(server.spec.id, server.address)]
        async with (
            controller_harness.controller(fleet, entries, keys) as controller,
            router(controller.address, name="a") as busy,
            router(controller.address, name="b") as other,
            triton_aio.InferenceServerClient(busy.address) as client,
        ):
            tensor = triton.InferInput("INPUT", [1], "FP32")
            tensor.set_data_from_numpy(np.zeros(1, np.float32))

            async def requests() -> AsyncIterator[dict[str, Any]]:
                yield {"model_name": "many", "inputs": [tensor]}

            answers = client.stream_infer(requests())
            await anext(answers)

            catalog = controller.loop.catalog
            gone = catalog.replace((), [model_name("many")], all_=False)
            controller.loop.catalog_changed(gone)
            await until(lambda: other.watch.table.entry(Target("many", 1)) is None)
            assert not other.watch.table.plain
            values = [float(answer.as_numpy("OUTPUT")[0]) async for answer, _ in answers]
            assert values == list(range(1, REPLIES))
            await until(lambda: other.watch.table.plain)
