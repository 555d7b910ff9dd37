"""A repository with everything that repositories have, on a bare Triton and through Shoal: the same
models are served, with the same metadata and the same answers, but for a listed few."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
LOADS_AT_ONCE = 4  # as many as a Triton's own default
SIZE = 64 << 20  # bytes, more than any of the models takes
LOAD_SECONDS = 60.0

# By model, and by version where it is asked for by number: why Shoal does otherwise than a Triton.
DIFFERENCES = {
    "no_policy": "without a policy every version may be asked for by number, so metadata lists all",
    "empty_config": "a model without tensors is refused: no request to it could be answered",
    **dict.fromkeys(("many,commas", "a=b", "a~b", "a#b"), "names have fewer special characters"),
}


@dataclass(frozen=True)
class Seen:
    """What a client sees of a version: its metadata and an answer. None where it is not loaded."""

    metadata: Outcome
    answer: Outcome


Key = tuple[str, str]
Found = dict[Key, Seen | None]


def label(key: Key) -> str:
    return " ".join(key).strip()


def asked(channel: grpc.Channel, model: Model, sent: Metadata = ()) -> Iterable[tuple[Key, Seen]]:
    """Ask the default version of a model, and those that it names."""
    method = STREAM if model.decoupled else "ModelInfer"
    for version in ("", *map(str, model.versions)):
        named = service_pb2.ModelMetadataRequest(name=model.name, version=version)
        yield (
            (model.name, version),
            Seen(
                call(channel, "ModelMetadata", [named.SerializeToString()], sent),
                call(channel, method, [model.message(version)], sent),
            ),
        )


def on_all(models: Iterable[Model], ask: Callable[[Model], Iterable[tuple[Key, Seen]]]) -> Found:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        several = pool.map(lambda model: list(ask(model)), models)
        return {key: seen for pairs in several for key, seen in pairs}


def on_triton(folder: Path, repository: Path, models: list[Model]) -> Found:
    """Load all models and ask those that are loaded."""
    folder.mkdir()
    with triton_direct(folder, repository) as server:

        def loads(model: Model) -> bool:
            if model.hangs:
                return False
            with closing(triton.InferenceServerClient(server.address)) as client:
                try:
                    client.load_model(model.name, headers=server.admin, client_timeout=LOAD_SECONDS)
                except triton.InferenceServerException:
                    return False
            return True

        with (
            ThreadPoolExecutor(LOADS_AT_ONCE) as pool,
            grpc.insecure_channel(server.address) as channel,
        ):
            loaded = list(pool.map(loads, models))
            sent = tuple(server.admin.items())
            served = [model for model, is_there in zip(models, loaded, strict=True) if is_there]
            return on_all(served, lambda model: asked(channel, model, sent))


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


def complaint(alone: Seen | None, shoal: Seen, method: str) -> str:
    """Return how Shoal's answers differ from those of a Triton alone, or ""."""
    if alone is None:
        return "" if shoal.answer.code != "OK" else "served by Shoal alone"
    if alone.answer.code != shoal.answer.code:
        return f"{alone.answer.code} {alone.answer.text}: {shoal.answer.code} {shoal.answer.text}"
    if alone.answer.code != "OK":
        return ""  # Texts are compared by the other cases: paths, and what to do, differ in them.
    if alone.answer.parsed(method) != shoal.answer.parsed(method):
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
    methods = {model.name: STREAM if model.decoupled else "ModelInfer" for model in models}
    differing = {
        label(key): found
        for key, seen in shoal.items()
        if seen is not None and (found := complaint(alone.get(key), seen, methods[key[0]]))
    }
    unlisted = {name: text for name, text in differing.items() if name not in DIFFERENCES}
    assert unlisted == {}
    listed = {name for name in DIFFERENCES if name in set(map(label, shoal))}
    assert listed == set(differing), "it differs no more"


def test_the_light_ones(tmp_path: Path) -> None:
    check(tmp_path, light=True)


@pytest.mark.soak
def test_all_of_them(tmp_path: Path) -> None:
    assert len(generated.models(light=False)) >= 250
    check(tmp_path, light=False)
