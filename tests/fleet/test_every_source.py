"""One small model from every kind of source, each answering through the Router."""

from pathlib import Path

import numpy as np
import pytest

from services.embedded.background import BackgroundStack
from shoal.client import connect
from tests.support.every_source import every_source, files_of
from tests.support.triton_models import write

pytestmark = pytest.mark.triton

SOON = 30.0  # seconds


def test_every_source_answers_through_the_router(tmp_path: Path) -> None:
    write(tmp_path / "models", "adder", answer="x + 1")
    model = tmp_path / "models" / "adder"
    options = ("--servers=1", "--memory-budget=2GiB", "--no-otlp")
    with (
        every_source(model, tmp_path) as (environment, sources),
        BackgroundStack(*options, environment=environment) as stack,
        connect(
            router=stack.router_grpc, controller=stack.controller, registry=stack.registry
        ) as client,
    ):
        made = {scheme: client.register(scheme, source) for scheme, source in sources.items()}
        made["upload"] = client.upload("upload", model)
        origins = {name: one.provenance for name, one in made.items() if one.provenance}
        schemes = {name: origin.source.partition("://")[0] for name, origin in origins.items()}
        assert schemes == {name: name for name in made}
        # The same contents lie in the store once, wherever they came from.
        assert len({origin.digest for origin in origins.values()}) == 1
        assert client.disk_usage().used_bytes == sum(map(len, files_of(model).values()))
        for name, version in made.items():
            assert version.state == "APPROVED", (name, version.invalid_reason)
            client.wait_for_route(name, "", answers=version.version, within=SOON)
            answer = client.infer(name, {"INPUT": np.ones(1, np.float32)}, timeout=SOON)
            assert answer["OUTPUT"].tolist() == [2.0], name
        assert client.collect_garbage(dry_run=True) == []
