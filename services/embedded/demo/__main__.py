"""`make demo`: real requests to more models than fit in memory, and what Shoal does about it."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from services.embedded.demo import script, traces
from services.embedded.demo.asking import Answer, Asker
from services.embedded.demo.display import DemoDisplay, summary
from services.embedded.demo.script import NoExamples, Script
from services.embedded.demo.stack import DemoStack, Interrupted, NotUp
from services.embedded.errors import CannotStart
from shoal.cli.collector import CollectorAway
from shoal.cli.waterfall import waterfall
from shoal.client import CallFailed

_EXIT_WRONG: Final = 1
_EXIT_UNAVAILABLE: Final = 69  # as in sysexits.h
_MOST: Final = 1000  # requests, because the collector lists no more traces
_SPANS_WITHIN: Final = 15.0  # seconds
_TRIED: Final = 4  # cold requests, to find one that Triton has traced too


def main(words: Sequence[str]) -> int:
    """Run the demo. Return the exit status, 0 if every answer was right."""
    given = _arguments(words)
    display = DemoDisplay()
    try:
        asked = script.read(given.requests, given.max_models)
        return _demo(asked, given, display)
    except KeyboardInterrupt:
        return 130
    except Interrupted as interrupted:
        return interrupted.exit_status
    except NoExamples as error:
        return _failed(str(error), _EXIT_UNAVAILABLE)
    except (NotUp, CannotStart) as error:
        return _failed(str(error), error.exit_status)
    except (CallFailed, CollectorAway, OSError) as error:
        return _failed(str(error), _EXIT_WRONG)


def _demo(asked: Script, given: argparse.Namespace, display: DemoDisplay) -> int:
    places = given.max_models
    display.say(
        f"Starting Shoal on free ports: {asked.models} models, one Triton with room for {places}."
    )
    stack = DemoStack(asked.repository, places, display.say)
    with stack.signals(), stack:
        document = _shown(stack, asked, places, display)
        if given.json:
            given.json.write_text(json.dumps(document, indent=1))
    return 0 if all(not one["wrong"] for one in document["requests"]) else _EXIT_WRONG


def _shown(stack: DemoStack, asked: Script, places: int, display: DemoDisplay) -> dict[str, Any]:
    """Do everything between start and stop; return it for --json."""
    display.say(f"Ready. A plain tritonclient asks {stack.router_grpc}.\n")
    display.headings()
    answers = []
    with closing(Asker(stack.router_grpc, stack.controller, asked.repository)) as asker:
        for question in asked.questions:
            with display.asking(question.name), stack.interruptible():
                answers.append(asker.ask(question))
            display.answer(answers[-1])
    display.say()
    traced = _traced(stack, answers, display)
    line = summary(asked, places, answers)
    display.say(f"\n{line}.", "bold")
    return {
        "run": stack.announced().run,
        "room_for": places,
        "summary": line,
        "requests": [_request(answer) for answer in answers],
        "traces": traced,
    }


def _traced(stack: DemoStack, answers: Sequence[Answer], display: DemoDisplay) -> dict[str, Any]:
    """Show where the traces went, and one of them, if the stack has its own collector."""
    address = stack.announced().endpoints["collector_http"]
    if address is None:
        endpoint = traces.elsewhere(os.environ)
        display.say(f"Traces: sent over OTLP to {endpoint}." if endpoint else "Traces: off.")
        if endpoint:
            display.trace_ids(answers)
        return {"endpoint": endpoint, "spans": {}, "waterfall": None}
    candidates = _cold_ones(answers)
    with stack.interruptible():
        whole = (one for one in candidates[:_TRIED] if traces.has_tritons(address, one.trace_id))
        shown = next(whole, candidates[0] if candidates else None)
    spans: Sequence[traces.Span] = ()
    if shown is not None:
        display.say(f"Where the time went, in a cold request for {shown.question.name}:\n")
        wanted = traces.COLD | ({"evict"} if shown.evicted else set())
        with stack.interruptible():
            spans = traces.whole(address, shown.trace_id, wanted, _SPANS_WITHIN)
        # There is only one of each service, so the instance says nothing.
        plain = [{**span, "instance": ""} for span in spans]
        display.show(waterfall(plain, display.console.width))
        if absent := traces.missing(spans, wanted):
            display.say(f"Not received within {_SPANS_WITHIN:g} s: {', '.join(absent)}", "red")
        display.say()
    with stack.interruptible():
        counts = traces.received(address, [answer.trace_id for answer in answers], _SPANS_WITHIN)
    display.say(
        f"Traces: {len(counts)} of {len(answers)}, {sum(counts.values())} spans, were sent over "
        f"OTLP to http://{address}, the stack's own collector.\nWith `shoal up`, `shoal trace ID` "
        "shows any of them:"
    )
    display.trace_ids(answers)
    return {
        "endpoint": f"http://{address}",
        "spans": counts,
        "waterfall": shown and {"trace_id": shown.trace_id, "spans": spans},
    }


def _cold_ones(answers: Sequence[Answer]) -> list[Answer]:
    """Return cold answers, those that evicted a model if any did, the median by time first."""
    cold = [answer for answer in answers if len(answer.loaded) == 1 and not answer.wrong]
    chosen = [answer for answer in cold if answer.evicted] or cold
    chosen.sort(key=lambda answer: answer.milliseconds)
    middle = len(chosen) // 2
    return sorted(chosen, key=lambda answer: abs(chosen.index(answer) - middle))


def _request(answer: Answer) -> dict[str, Any]:
    fields = asdict(answer)
    question = answer.question
    return {
        "model": question.model,
        "version": question.version,
        "cold": answer.cold,
        **{name: value for name, value in fields.items() if name != "question"},
    }


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.embedded.demo", description=__doc__)
    parser.add_argument(
        *("--requests", "-n"),
        type=int,
        metavar="N",
        help="number of requests: the first N of the script, and random ones beyond it; default: "
        "the script once",
    )
    parser.add_argument(
        "--max-models",
        type=int,
        default=3,
        metavar="N",
        help="models in memory at a time; default: 3",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was shown to FILE")
    given = parser.parse_args(words)
    if given.requests is not None and not 1 <= given.requests <= _MOST:
        parser.error(f"--requests: give a number from 1 to {_MOST}")
    if given.max_models < 1:
        parser.error("--max-models: give a number from 1 up")
    if given.json and not given.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {given.json.absolute().parent}")
    return given


def _failed(text: str, status: int) -> int:
    sys.stderr.write(f"demo: {text}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
