"""What a server is found to hold, on a real Triton that was left by another Controller."""

import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2

from services.controller.core.entities import Server, Unit
from services.controller.registry.catalogue import Catalogue
from services.controller.servers.inventory import inventory, same
from services.controller.triton.client import Triton, TritonRefused, TritonSlow
from shoal.names import model_name, version_name
from shoal.registry.v1 import types_pb2 as registry
from tests.support.triton_direct import DirectTriton, triton_direct, triton_python
from tests.support.triton_models import ask, config, wire, write

SECONDS = 20.0
Config = Any  # model_config_pb2.ModelConfig


def batching(made: Config) -> None:
    made.max_batch_size = 8
    made.dynamic_batching.SetInParent()


def sequences(made: Config) -> None:
    made.max_batch_size = 4
    made.sequence_batching.direct.SetInParent()


def decoupled(made: Config) -> None:
    made.model_transaction_policy.decoupled = True


def tuned(made: Config) -> None:
    made.optimization.priority = model_config_pb2.ModelOptimizationPolicy.PRIORITY_MAX
    made.input[0].optional = True


KINDS: dict[str, Callable[[Config], None]] = {
    "batching": batching,
    "sequences": sequences,
    "decoupled": decoupled,
    "tuned": tuned,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    models = tmp_path_factory.mktemp("models")
    for name in ("plain", "asked", "changed", "selfcheck", *KINDS):
        write(models, name)
    write(models, "loading", initialize="time.sleep(5)")
    write(models, "unloading")
    with (models / "unloading" / "1" / "model.py").open("a") as code:
        code.write("\n    def finalize(self):\n        time.sleep(5)\n")
    subprocess.run([triton_python(), "-m", "compileall", "-q", models], check=True)
    folder = tmp_path_factory.mktemp("server")
    with triton_direct(folder, models, id=f"direct-{secrets.token_hex(4)}") as running:
        yield running


def catalogue(**configs: bytes) -> Catalogue:
    found = Catalogue()
    for model, content in configs.items():
        version = registry.ModelVersion(name=version_name(model, 1), config=content)
        entry = registry.CatalogEntry(model=registry.Model(name=model_name(model)))
        entry.versions.append(version)
        found.replace([entry], (), all_=False)
    return found


def kind(name: str) -> bytes:
    made = config(name)
    KINDS[name](made)
    return bytes(made.SerializeToString())


@pytest.mark.triton
async def test_the_inventory(server: DirectTriton) -> None:
    known = catalogue(
        plain=wire("plain"), asked=wire("asked"), changed=kind("batching"), gone=wire("gone")
    )
    about = Server(server.spec.id, server.address)
    async with Triton(server.spec.id, server.address, server.spec.admin_secret) as triton:
        for name in ("plain", "asked", "changed", "selfcheck", "unloading"):
            await triton.apply(wire(name), (1,), Unit(name, 1), SECONDS)
        ask(server, "asked", 1)
        with pytest.raises(TritonSlow):
            await triton.apply(wire("loading"), (1,), Unit("loading", 1), 0.1)
        with pytest.raises(TritonSlow):
            await triton.drop(wire("unloading"), (), Unit("unloading", 1), 0.1)
        found = await inventory(about, triton, await triton.index(), known, "selfcheck")

        assert found.server == about
        assert {unit.model for unit in found.resident} == {"plain", "asked", "changed"}
        assert found.loading == {Unit("loading", 1)}
        assert found.unloading == {Unit("unloading", 1)}
        assert found.outdated == {Unit("changed", 1)}
        assert found.idle.keys() == {Unit("asked", 1)}, "of what was asked at all"
        assert 0 <= found.idle[Unit("asked", 1)] < SECONDS

        with pytest.raises(TritonRefused):
            await triton.config(Unit("nowhere", 1))


@pytest.mark.triton
@pytest.mark.parametrize("name", KINDS)
async def test_what_triton_fills_in_makes_no_other_config(server: DirectTriton, name: str) -> None:
    async with Triton(server.spec.id, server.address, server.spec.admin_secret) as triton:
        await triton.apply(kind(name), (1,), Unit(name, 1), SECONDS)
        loaded = await triton.config(Unit(name, 1))
    assert loaded != kind(name)
    assert same(kind(name), loaded)
    assert not same(wire(name), loaded)
    others = [made for made in KINDS.values() if made is not KINDS[name]]
    for change in others:
        other = config(name)
        KINDS[name](other)
        change(other)
        assert not same(bytes(other.SerializeToString()), loaded)


def test_what_is_changed_in_place_does_not_count() -> None:
    one, other = config("m"), config("m", instances=3)
    other.version_policy.latest.num_versions = 2
    assert same(one.SerializeToString(), other.SerializeToString())
    other.parameters["kept"].string_value = "otherwise"
    assert not same(one.SerializeToString(), other.SerializeToString())
    del other.parameters["kept"]
    assert not same(one.SerializeToString(), other.SerializeToString())
    assert not same(other.SerializeToString(), one.SerializeToString())
