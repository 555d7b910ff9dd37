"""Where Shoal answers otherwise than the Triton alone would, how exactly, and why."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.conformance.calls import STREAM, Outcome, by_model

Holds = Callable[[str, Outcome, Outcome], None]


@dataclass(frozen=True)
class Difference:
    """`what`, `why`: as docs/compatibility.md has them. `holds`: takes the method, Triton's outcome
    and Shoal's, and asserts that they differ as `what` says and in nothing else."""

    what: str
    why: str
    holds: Holds


def same(method: str, triton: Outcome, shoal: Outcome) -> None:
    """Byte for byte, but for streams, whose replies are the same in content; each model's are in
    order."""
    assert (shoal.code, shoal.text) == (triton.code, triton.text)
    assert shoal.extra == triton.extra
    if method == STREAM:
        assert by_model(shoal) == by_model(triton)
    else:
        assert shoal.messages == triton.messages


def same_content(method: str, triton: Outcome, shoal: Outcome) -> None:
    assert (shoal.code, shoal.text, shoal.extra) == (triton.code, triton.text, triton.extra)
    assert shoal.parsed(method) == triton.parsed(method)


def _without_paths(outcome: Outcome) -> Outcome:
    text = re.sub(r"/\S*/(?=[^/\s]+/\d+/model\.py)", "", outcome.text)
    return Outcome(outcome.code, text, outcome.messages, outcome.extra)


def _same_but_paths(method: str, triton: Outcome, shoal: Outcome) -> None:
    same(method, _without_paths(triton), _without_paths(shoal))


def _says_more(method: str, triton: Outcome, shoal: Outcome) -> None:
    """Triton's own sentence, and after it what to do."""
    assert shoal.code == triton.code
    assert _continues(shoal.text, triton.text)
    if method != STREAM:
        assert shoal.messages == triton.messages
        return
    ours, theirs = (_in_band_errors(outcome) for outcome in (shoal, triton))
    assert [id_ for id_, _ in ours] == [id_ for id_, _ in theirs]
    assert all(_continues(a[1], b[1]) for a, b in zip(ours, theirs, strict=True))
    answers, wanted = (_answers(outcome) for outcome in (shoal, triton))
    assert answers == wanted


def _continues(ours: str, theirs: str) -> bool:
    return ours == theirs == "" or bool(re.match(re.escape(theirs) + r"[.:] \S", ours))


def _in_band_errors(outcome: Outcome) -> list[tuple[str, str]]:
    """Ids and texts."""
    return [
        (reply.infer_response.id, reply.error_message)
        for reply in outcome.parsed(STREAM)
        if reply.error_message
    ]


def _answers(outcome: Outcome) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for reply in outcome.parsed(STREAM):
        if not reply.error_message:
            found.setdefault(reply.infer_response.model_name, []).append(reply)
    return found


def _refused(code: str, words: str) -> Holds:
    """Whatever Triton does with it."""

    def holds(method: str, triton: Outcome, shoal: Outcome) -> None:
        said = [shoal.text]
        if method == STREAM:
            assert (shoal.code, triton.messages) == ("OK", ())
            said = [text for _, text in _in_band_errors(shoal)]
        else:
            assert (shoal.code, shoal.messages) == (code, ())
        assert all(words in text for text in said)
        assert said

    return holds


def _refused_in_band(method: str, triton: Outcome, shoal: Outcome) -> None:
    """Errors are the same in all but what they say of the model."""
    assert shoal.code == triton.code == "OK"
    assert _in_band_errors(shoal) == _in_band_errors(triton)
    assert _answers(shoal) == _answers(triton)


def _as_status(method: str, triton: Outcome, shoal: Outcome) -> None:
    (_, text) = _in_band_errors(triton)[-1]
    assert (shoal.code, shoal.text) == ("INVALID_ARGUMENT", text)
    wanted = _answers(triton)
    for model, replies in _answers(shoal).items():  # what was answered by then
        assert replies == wanted[model][: len(replies)]


def _not_loaded(method: str, triton: Outcome, shoal: Outcome) -> None:
    if method == "ModelReady":
        assert not triton.parsed(method)[0].ready
        assert shoal.code == "OK"
        return
    assert triton.code == "NOT_FOUND"
    if method == "ModelInfer":
        assert shoal.code == "FAILED_PRECONDITION"
        assert "ValueError: weights are missing" in shoal.text
        return
    (reply,) = shoal.parsed(method)
    assert (reply.config if method == "ModelConfig" else reply).name == "broken"


def _server(method: str, triton: Outcome, shoal: Outcome) -> None:
    (theirs,), (ours,) = triton.parsed(method), shoal.parsed(method)
    assert ours.name == "triton"
    assert [one for one in theirs.extensions if one in ours.extensions] == list(ours.extensions)
    assert {"classification", "sequence", "model_repository"} <= set(ours.extensions)


def _config(method: str, triton: Outcome, shoal: Outcome) -> None:
    (theirs,), (ours,) = (outcome.parsed(method) for outcome in (triton, shoal))
    theirs, ours = theirs.config, ours.config
    for group in theirs.instance_group:
        group.ClearField("name")
    if theirs.HasField("dynamic_batching"):
        theirs.dynamic_batching.ClearField("preferred_batch_size")
    for field in ("optimization", "version_policy", "model_transaction_policy"):
        if not ours.HasField(field):
            theirs.ClearField(field)
    assert ours == theirs


def _index(method: str, triton: Outcome, shoal: Outcome) -> None:
    if triton.code != "OK":
        _says_more(method, triton, shoal)
        return
    (theirs,), (ours,) = triton.parsed(method), shoal.parsed(method)
    ready = {(row.name, row.version) for row in theirs.models if row.state == "READY"}
    rows = {(row.name, row.version): row.state for row in ours.models}
    assert ready <= set(rows)
    others = {"broken"}  # ready until a load has failed
    assert {name for name, _ in rows} - others == {row.name for row in theirs.models} - others
    assert {rows[one] for one in ready} == {"READY"}
    assert list(rows) == sorted(rows)


def _statistics(method: str, triton: Outcome, shoal: Outcome) -> None:
    (theirs,), (ours,) = triton.parsed(method), shoal.parsed(method)
    wanted = [(row.name, row.version) for row in theirs.model_stats]
    found = [(row.name, row.version) for row in ours.model_stats]
    assert [one for one in found if one[0] != "broken"] == wanted
    served = {row.name for row in theirs.model_stats if row.inference_count}
    assert served <= {row.name for row in ours.model_stats if row.inference_count}


def _same_up_to_the_name(method: str, triton: Outcome, shoal: Outcome) -> None:
    assert (triton.code, shoal.code) == ("UNIMPLEMENTED", "UNIMPLEMENTED")


DIFFERENCES: Final[dict[str, Difference]] = {
    "encoding": Difference(
        "The same content with fields in another order: in streams, and in answers that have a map",
        "The Router writes a stream's replies around what it forwards. Triton's maps have no "
        "fixed order, and two servers differ in it, too",
        same_content,
    ),
    "refused in band": Difference(
        "A request refused within a stream: the reply names the model and says that it is "
        "final, where Triton gives only the id",
        "The Router sends the request to a server by itself, and says what every other last "
        "reply says",
        _refused_in_band,
    ),
    "errors as statuses": Difference(
        "A stream with the header `triton_grpc_error`: its first error ends it, even if that is "
        "a refusal",
        "This is how Triton describes it; release 24.10 keeps refusals in the stream",
        _as_status,
    ),
    "paths": Difference(
        "Paths of model files in the text of a model's own error",
        "Models are served from the staging tree, not from the folder that was registered",
        _same_but_paths,
    ),
    "unknown": Difference(
        "Unknown model or version, or a version that is no number: more text after Triton's own "
        "sentence",
        "Clients match on the sentence; people need to know what to do",
        _says_more,
    ),
    "versions": Difference(
        "Versions 0, -1, 01, and those beyond 64 bits: INVALID_ARGUMENT, whatever Triton does "
        "with each",
        "A version has one spelling, the name of its folder",
        _refused("INVALID_ARGUMENT", "give a whole number from 1 up"),
    ),
    "names": Difference(
        "Names that no model can have: INVALID_ARGUMENT instead of NOT_FOUND",
        "They never reach a server, where a name becomes a folder",
        _refused("INVALID_ARGUMENT", "names start with a letter or digit"),
    ),
    "not loaded": Difference(
        "A model that cannot be loaded: FAILED_PRECONDITION with the error of the load. It has "
        "metadata, a config and a row in the index, and is ready until a load has failed, and then "
        "not before one succeeds or it is registered anew",
        "It exists, and is loaded when it is asked for",
        _not_loaded,
    ),
    "not protobuf": Difference(
        "Bytes that are not a request: INVALID_ARGUMENT with the reason instead of INTERNAL; in "
        "a stream an error, where Triton ends the stream without one",
        "The Router reads the names before it sends anything to a server",
        _refused("INVALID_ARGUMENT", "not a valid inference.ModelInferRequest"),
    ),
    "groups": Difference(
        "A request with protobuf groups, with more than 16,384 fields, or with an id or name of "
        "more than 64 KiB: INVALID_ARGUMENT",
        "No client sends them, and reading them can be made expensive",
        _refused("INVALID_ARGUMENT", "wire type 3"),
    ),
    "shapes": Difference(
        "An input of more than 2^48 elements, of more than 64 dimensions, or with negative "
        "dimensions whose product is not negative: INVALID_ARGUMENT, whatever Triton does with "
        "it",
        "In Triton the product overflows, and if the result matches the number of bytes, the "
        "input ends a Python model's process",
        _refused("INVALID_ARGUMENT", "an input of more than"),
    ),
    "sequence ids": Difference(
        "A text as `sequence_id` for a model, or for a part of an ensemble, whose control "
        "CONTROL_SEQUENCE_CORRID is a number: INVALID_ARGUMENT",
        "Triton writes it beyond the end of the number, and ends sooner or later",
        _refused("INVALID_ARGUMENT", "the model takes numbers"),
    ),
    "config": Difference(
        "ModelConfig: without what Triton fills in by itself (version policy, optimization, "
        "names of instance groups, preferred batch sizes)",
        "It is the registered config, known before anything is loaded",
        _config,
    ),
    "server": Difference(
        "ServerMetadata: Shoal's version, and only the extensions that Shoal has",
        "To its clients it is one server",
        _server,
    ),
    "index": Difference(
        "RepositoryIndex: every registered version, READY if requests for it are answered; the "
        "reason says whether it is resident",
        "A model that is not resident is loaded by the first request for it",
        _index,
    ),
    "statistics": Difference(
        "ModelStatistics: summed over all servers and across evictions",
        "Where a model was when it answered is not a client's concern",
        _statistics,
    ),
    "parameters of a load": Difference(
        "RepositoryModelLoad with a config or with files: INVALID_ARGUMENT",
        "What is loaded is what is registered; to load a client's files would be to run its code",
        _refused("INVALID_ARGUMENT", "unrecognized load parameter"),
    ),
    "methods": Difference(
        "An unknown method: UNIMPLEMENTED with another text",
        "The text is gRPC's own, which differs between Python and C++",
        _same_up_to_the_name,
    ),
}
