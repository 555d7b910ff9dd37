"""Configs of models that the Router keeps."""

from typing import Any

from tritonclient.grpc import model_config_pb2

from services.router.control.model_info import ModelInfo
from services.router.core.routing.routes import Target, VersionRoute
from shoal.controller.v1 import controller_service_pb2 as wire

TARGET = Target("m", 1)


class Controller:
    """Answers with the config of the present, and counts the questions."""

    def __init__(self) -> None:
        self.count = 1
        self.fingerprint = "1"
        self.asked = 0

    async def config(self, target: Target) -> Any:
        self.asked += 1
        config = model_config_pb2.ModelConfig(name=target.model)
        config.instance_group.add(count=self.count)
        return wire.GetModelConfigResponse(
            config=config.SerializeToString(), config_digest="d", fingerprint=self.fingerprint
        )


async def test_a_config_is_asked_for_again_when_the_files_or_the_config_change() -> None:
    controller = Controller()
    info = ModelInfo(controller)  # type: ignore[arg-type]

    async def instances(fingerprint: str) -> int:
        route = VersionRoute(config_digest="d", fingerprint=fingerprint)
        config = await info.config(TARGET, route.identity)
        return int(config.instance_group[0].count)

    assert [await instances("1") for _ in range(3)] == [1, 1, 1]
    assert controller.asked == 1
    controller.count, controller.fingerprint = 3, "2"
    assert [await instances("2") for _ in range(2)] == [3, 3]
    assert controller.asked == 2
