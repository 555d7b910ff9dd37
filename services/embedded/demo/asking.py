"""A question, sent as by any client of Triton, and what Shoal did to answer it."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from services.embedded.demo import words
from services.embedded.demo.script import Question
from shoal.client import connect
from shoal.controller.v1.controller_service_pb2 import ListEventsRequest
from shoal.controller.v1.types_pb2 import Event, EventKind
from shoal.names import parse_version_name

_ANSWER_WITHIN: Final = 90.0  # seconds, with a load
_PAGE: Final = 100  # events
# An http_proxy in the environment is for the Internet.
_CHANNEL: Final = (("grpc.enable_http_proxy", 0),)


@dataclass(frozen=True)
class Answer:
    """An answer, and what was done for it.

    `loaded` and `evicted` are MODEL:VERSION. `wrong` says what is wrong with the answer, or why
    there is none; it is "" for the right answer.
    """

    question: Question
    asked: str
    answered: str
    wrong: str
    milliseconds: float
    loaded: tuple[str, ...]
    evicted: tuple[str, ...]
    trace_id: str

    @property
    def cold(self) -> bool:
        return bool(self.loaded)


class Asker:
    """A client that asks one question at a time. `router` and `controller` are host:port."""

    def __init__(self, router: str, controller: str, repository: Path) -> None:
        self._router = triton.InferenceServerClient(router, channel_args=_CHANNEL)
        self._controller = connect(controller=controller)
        self._repository = repository
        self._seen = 0  # sequence of the newest event

    def ask(self, question: Question) -> Answer:
        """Ask. Raises shoal.client.CallFailed if the Controller does not say what was done."""
        trace_id = secrets.token_hex(16)
        began = time.perf_counter()
        try:
            answered, wrong = self._infer(question, trace_id)
        except InferenceServerException as error:
            answered, wrong = "", error.message()
        milliseconds = (time.perf_counter() - began) * 1000
        # Only this request's, since nobody else asks. An ensemble's parts have no trace id.
        events = [event for event in self._new_events() if event.trace_id in ("", trace_id)]
        return Answer(
            question,
            words.asked(question.example.inputs),
            answered,
            wrong,
            milliseconds,
            _units(event for event in events if event.kind == EventKind.EVENT_KIND_LOADING),
            _units(event for event in events if event.for_version),
            trace_id,
        )

    def close(self) -> None:
        self._router.close()
        self._controller.close()

    def _infer(self, question: Question, trace_id: str) -> tuple[str, str]:
        example = question.example
        tensors = []
        for name, array in example.inputs.items():
            tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensors.append(tensor.set_data_from_numpy(array))
        result = self._router.infer(
            question.model,
            tensors,
            model_version=question.version,
            headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"},
            client_timeout=_ANSWER_WITHIN,
        )
        outputs = {name: result.as_numpy(name) for name in example.expected}
        wrong = "; ".join(example.mismatches(outputs))
        if any(array is None for array in outputs.values()):
            return "", wrong
        return words.answered(question.model, outputs, self._repository), wrong

    def _new_events(self) -> list[Event]:
        """Return the events since the last call, oldest first."""
        new: list[Event] = []
        request = ListEventsRequest(page_size=_PAGE)
        for page in self._controller.pages(self._controller.controller.ListEvents, request):
            fresh = [event for event in page.events if event.sequence > self._seen]
            new += fresh
            if len(fresh) < len(page.events):
                break
        if new:
            self._seen = new[0].sequence
        return new[::-1]


def _units(events: Iterator[Event]) -> tuple[str, ...]:
    """Return the MODEL:VERSION of the events, each once."""
    names = (parse_version_name(event.version) for event in events)
    return tuple(dict.fromkeys(f"{name.model}:{name.version}" for name in names if name))
