"""Far more models than fit, all of them wanted at once, watched from outside."""

import concurrent.futures
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace

import onnxruntime
import pytest
import tritonclient.grpc as triton

from model_repository.examples import EXAMPLES as UNITS
from model_repository.examples import Example
from services.embedded.background import BackgroundStack
from shoal.registry.v1 import registry_service_pb2 as registry
from tests.support.results import record
from tests.support.stack import EXAMPLES, Fleet, Samples, example, infer, sampled, zipf

pytestmark = pytest.mark.triton

ENSEMBLES = frozenset({"file_type"})
CLIENTS = 16
ROOM = 3
# Most popular first, large and small mixed, so that what leaves is now a large one, now a small.
POPULARITY = sorted(UNITS, key=lambda unit: (len(unit[0]) * 7 + unit[1]) % 11)


@dataclass
class Outcome:
    answered: int
    wrong: list[str]
    seconds: float
    samples: Samples


def storm(stack: Fleet, requests: int, samples: Samples) -> Outcome:
    """`requests` by 16 clients at once, drawn by a Zipf law over all units."""
    shown = {unit: by_onnxruntime(example(*unit)) for unit in UNITS}
    local = threading.local()
    wrong: list[str] = []

    def ask(unit: tuple[str, int]) -> bool:
        if not hasattr(local, "client"):
            local.client = triton.InferenceServerClient(stack.router_grpc)
        try:
            wrong.extend(infer(local.client, shown[unit], client_timeout=120))
        except triton.InferenceServerException as error:
            wrong.append(f"{unit}: {error}")
        return True

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        answered = sum(pool.map(ask, zipf(requests, POPULARITY, 1.1, seed=7)))
    return Outcome(answered, wrong, time.monotonic() - began, samples)


def by_onnxruntime(shown: Example) -> Example:
    """The example, with what onnxruntime itself answers where the model is an ONNX file."""
    file = EXAMPLES / shown.model / str(shown.version) / "model.onnx"
    if not file.exists():
        return shown
    session = onnxruntime.InferenceSession(file)
    given = {
        tensor.name: shown.inputs[tensor.name].reshape(
            [size if isinstance(size, int) else 1 for size in tensor.shape]
        )
        for tensor in session.get_inputs()
    }
    names = list(shown.expected)
    answers = session.run(names, given)
    expected = {
        name: answer.reshape(shown.expected[name].shape)
        for name, answer in zip(names, answers, strict=True)
    }
    # A batch of several is answered a little otherwise than one alone, by onnxruntime itself.
    return replace(shown, expected=expected, atol=min(shown.atol, 1e-3))


def all_learned(stack: Fleet) -> bool:
    known = stack.registry.ListFootprints(registry.ListFootprintsRequest(page_size=1000)).footprints
    return sum(bool(one.memory) for one in known) >= len(UNITS) - len(ENSEMBLES)


def run(requests: int, *arguments: str, learn: bool) -> Outcome:
    """`learn`: ask for every model once beforehand, so that every size is known."""
    with BackgroundStack(f"--repository={EXAMPLES}", "--trace-ratio=0", *arguments) as running:
        stack = Fleet(running)
        for unit in UNITS if learn else ():
            assert infer(stack.client, example(*unit), client_timeout=60) == []
        with sampled(running, "triton-0", lambda: all_learned(stack), ENSEMBLES) as samples:
            return storm(stack, requests, samples)


@pytest.mark.timeout(240)
def test_every_request_is_answered_within_the_number_of_models() -> None:
    outcome = run(30, f"--max-models={ROOM}", learn=False)
    assert outcome.wrong == []
    assert outcome.samples.errors == []
    assert outcome.samples.count > 50
    assert outcome.samples.most_units <= ROOM
    assert len(outcome.samples.units_seen) > ROOM


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("limit", ["--max-models=3", "--memory-budget=1200MiB"])
def test_two_thousand_requests(limit: str) -> None:
    outcome = run(2000, limit, learn=True)
    seen = Counter(
        requests=outcome.answered,
        wrong=len(outcome.wrong),
        samples=outcome.samples.count,
        most_units=outcome.samples.most_units,
        most_mib=outcome.samples.most_settled_bytes >> 20,
    )
    record(
        "2,000 requests, 16 clients, Zipf 1.1 over 16 units",
        {"limit": limit, "seconds": round(outcome.seconds, 1), **seen},
    )
    print(json.dumps(seen))
    assert outcome.wrong == []
    assert outcome.samples.errors == []
    if "models" in limit:
        assert outcome.samples.most_units <= ROOM
    else:
        assert outcome.samples.most_settled_bytes <= 1200 << 20
