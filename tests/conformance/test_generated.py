"""A repository with everything that repositories have, on a bare Triton and through Shoal: the same
models are served, with the same metadata and the same answers, but for a listed few."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

from services.embedded.background import BackgroundStack
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from tests.conformance.calls import STREAM, Metadata, Outcome, call
from tests.conformance.generated import repository as generated
from tests.conformance.generated.model import Model
from tests.support.triton_direct import triton_direct

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

AT_ONCE = 8
LOADS_AT_ONCE = 2  # with many at once, a Triton ends now and then
SIZE = 64 << 20  # bytes, more than any of the models takes
LOAD_SECONDS = 60.0
# How a Triton answers for a model that it has not loaded, and how Shoal refuses one.
NOT_SERVED = ("NOT_FOUND", "UNAVAILABLE", "FAILED_PRECONDITION")

# By model, and by version where it is asked for by number: why Shoal does otherwise than a Triton.
DIFFERENCES = {
    "no_policy": "without a policy every version may be asked for by number, so metadata lists all",
    "empty_config": "a model without tensors is refused: no request to it could be answered",
    "broken_newest 1": "a version that cannot be loaded takes no other version down",
    "version_zero": "versions begin with 1",
    "ensemble_without_version": "its version folder would be empty, and Git keeps no empty folders",
    **dict.fromkeys(("many,commas", "a=b", "a~b", "a#b"), "names have fewer special characters"),
}


@dataclass(frozen=True)
class Seen:
    """What a client sees of a version: its metadata, and an answer."""

    metadata: Outcome
    answer: Outcome

    @property
    def served(self) -> bool:
        return self.answer.code not in NOT_SERVED


Key = tuple[str, str]
Found = dict[Key, Seen]


def label(key: Key) -> str:
    return " ".join(key).strip()


def asked(channel: grpc.Channel, model: Model, sent: Metadata = ()) -> Iterable[tuple[Key, Seen]]:
    """Ask the default version of a model, and those that it names."""
    for version in ("", *map(str, model.versions)):
        named = service_pb2.ModelMetadataRequest(name=model.name, version=version)
        metadata = call(channel, "ModelMetadata", [named.SerializeToString()], sent)
        answer = call(channel, method(model), [model.message(version)], sent)
        yield (model.name, version), Seen(metadata, answer)


def method(model: Model) -> str:
    return STREAM if model.decoupled else "ModelInfer"


def on_all(models: Iterable[Model], ask: Callable[[Model], Iterable[tuple[Key, Seen]]]) -> Found:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        several = pool.map(lambda model: list(ask(model)), models)
        return {key: seen for pairs in several for key, seen in pairs}


def on_triton(folder: Path, repository: Path, models: list[Model]) -> Found:
    """Load all models, and ask those that do not end or stop the server."""
    folder.mkdir()
    with triton_direct(folder, repository) as server:

        def load(model: Model) -> None:
            with (
                closing(triton.InferenceServerClient(server.address)) as client,
                suppress(triton.InferenceServerException),
            ):
                client.load_model(model.name, headers=server.admin, client_timeout=LOAD_SECONDS)

        sound = [model for model in models if not model.hangs]
        # An ensemble loads its parts, and one whose load fails may unload them.
        with ThreadPoolExecutor(LOADS_AT_ONCE) as pool:
            list(pool.map(load, (model for model in sound if not model.ensemble)))
        for model in sound:
            if model.ensemble:
                load(model)
        sent = tuple(server.admin.items())
        with grpc.insecure_channel(server.address) as channel:
            return on_all(sound, lambda model: asked(channel, model, sent))


def on_shoal(repository: Path, models: list[Model]) -> Found:
    """Ask all models, which are loaded by it."""
    with (
        BackgroundStack(
            *(f"--repository={repository}", "--memory-budget=64GiB", "--no-otlp"),
            environment={
                "SHOAL_CONTROLLER_LOADS_PER_SERVER": "4",
                "SHOAL_CONTROLLER_LOADS_PER_HOST": "4",
            },
        ) as stack,
        grpc.insecure_channel(stack.registry) as channel,
    ):
        declare_sizes(RegistryServiceStub(channel))
        with grpc.insecure_channel(stack.router_grpc) as channel:
            return on_all(models, lambda model: asked(channel, model))


def declare_sizes(stub: RegistryServiceStub) -> None:
    """Declare what every version takes: one whose size is unknown is loaded alone."""
    token = ""
    while True:
        page = stub.ListModelVersions(
            registry.ListModelVersionsRequest(parent="models/-", page_size=1000, page_token=token)
        )
        for version in page.versions:
            request = registry.UpdateModelVersionRequest()
            request.version.name = version.name
            request.version.declared_memory["ram"] = SIZE
            request.update_mask.paths.append("declared_memory")
            stub.UpdateModelVersion(request, timeout=10)
        token = page.next_page_token
        if not token:
            return


def complaint(alone: Seen, shoal: Seen, method: str) -> str:
    """Return how Shoal's answers differ from those of a Triton alone, or ""."""
    ours, theirs = shoal.answer, alone.answer
    if not alone.served:
        return f"served by Shoal alone: {ours.code} {ours.text}" if shoal.served else ""
    if theirs.code != ours.code:
        return f"{theirs.code} {theirs.text}: {ours.code} {ours.text}"
    if theirs.code != "OK":
        return ""  # Texts are compared by the other cases: paths, and what to do, differ in them.
    if theirs.parsed(method) != ours.parsed(method):
        return "another answer"
    same = alone.metadata.parsed("ModelMetadata") == shoal.metadata.parsed("ModelMetadata")
    return "" if same else "other metadata"


def check(folder: Path, *, light: bool) -> None:
    models = generated.models(light=light)
    repository = folder / "models"
    repository.mkdir()
    generated.write(repository, models)
    with ThreadPoolExecutor(1) as beside:
        triton_alone = beside.submit(on_triton, folder / "triton", repository, models)
        shoal = on_shoal(repository, models)
        alone = triton_alone.result()
    differing = {}
    for model in models:
        for key in shoal:
            if key[0] == model.name and not model.hangs:
                differing[label(key)] = complaint(alone[key], shoal[key], method(model))
        if model.hangs:
            assert not shoal[model.name, ""].served
    found = {name: text for name, text in differing.items() if text}
    assert {name: text for name, text in found.items() if name not in DIFFERENCES} == {}
    assert found.keys() == DIFFERENCES.keys() & differing.keys(), "it differs no more"


def test_the_light_ones(tmp_path: Path) -> None:
    check(tmp_path, light=True)


@pytest.mark.soak
def test_all_of_them(tmp_path: Path) -> None:
    assert len(generated.models(light=False)) >= 250
    check(tmp_path, light=False)
