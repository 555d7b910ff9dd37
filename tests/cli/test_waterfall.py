"""A trace as text."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shoal.cli.waterfall import bar, waterfall

MS = 1_000_000
BEGAN = 1_795_152_847_000_000_000


def span(name: str, start: float, end: float, depth: int = 0, **more: Any) -> dict[str, Any]:
    """`start` and `end` in milliseconds."""
    return {
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
        "parent_span_id": "",
        "service": "shoal-router",
        "instance": "",
        "name": name,
        "kind": "server",
        "start_unix_nano": BEGAN + round(start * MS),
        "end_unix_nano": BEGAN + round(end * MS),
        "attributes": {},
        "status": {"code": "unset", "message": ""},
        "depth": depth,
        "orphan": False,
        "critical": True,
        **more,
    }


def text(spans: list[dict[str, Any]], width: int = 120, colours: bool = False) -> str:
    output = io.StringIO()
    Console(
        file=output,
        width=width,
        force_terminal=colours,
        color_system="standard" if colours else None,
        legacy_windows=False,
    ).print(waterfall(spans, width))
    return output.getvalue()


COLD = [
    span("infer", 0, 100, attributes={"shoal.model": "resnet", "shoal.version": 2}),
    span("make resident", 10, 60, 1, attributes={"evicted": ["a:1", "b:3"]}),
    span("log", 20, 40, 1, critical=False),
    span(
        "InferRequest",
        60,
        99,
        1,
        service="triton",
        instance="t0",
        attributes={"triton.model_name": "resnet", "triton.trace_id": 7},
    ),
]


def test_each_span_is_a_row_with_its_times_and_its_place() -> None:
    title, _, infer, resident, log, triton, legend = text(COLD).splitlines()
    assert title.rstrip() == f"trace {'ab' * 16}  100.00 ms  shoal-router, triton"
    assert infer.split()[:3] == ["infer", "0.00", "100.00"]
    assert resident.startswith("  make resident")
    assert resident.split()[2:4] == ["10.00", "50.00"]
    assert "critical" in legend
    whole = infer.count("█")
    assert resident.count("█") == pytest.approx(whole / 2, abs=1)
    assert resident.index("█") == pytest.approx(infer.index("█") + whole * 0.1, abs=1)
    assert triton.rindex("█") == pytest.approx(infer.rindex("█"), abs=1)
    assert "█" not in log
    assert "░" in log


def test_what_matters_stands_beside_it() -> None:
    _, _, infer, resident, _, triton, _ = text(COLD, width=160).splitlines()
    assert infer.rstrip().endswith("shoal-router  model=resnet  version=2")
    assert resident.rstrip().endswith("evicted=a:1,b:3")
    assert triton.rstrip().endswith("triton/t0  model=resnet")


def test_an_orphan_is_marked() -> None:
    shown = text([span("infer", 0, 9), span("compute", 2, 3, orphan=True)])
    assert "┄ compute" in shown
    assert "┄ infer" not in shown


def test_an_error_is_red_and_said_in_words() -> None:
    failed = span("load", 0, 5, status={"code": "error", "message": "out of memory"})
    _, _, ok, error, _ = text([span("infer", 0, 9), failed], colours=True).splitlines()
    assert "\x1b[31m" in error
    assert "\x1b[31m" not in ok
    assert "error: out of memory" in error


def test_what_a_sender_wrote_does_not_steer_the_terminal() -> None:
    evil = span("\x1b[2J[bold]x[/]\r\n", 0, 1, attributes={"model": "\x07m"}, service="a\x1bb")
    shown = text([evil])
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert "[bold]x[/]" in shown
    assert len(shown.splitlines()) == 4


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_it_keeps_to_the_width(width: int) -> None:
    wide = [
        *COLD,
        span("a name that goes on and on " * 4, 1, 2, 12, attributes={"model": "m" * 99}),
    ]
    assert max(map(len, text(wide, width).splitlines()[1:])) <= width


def test_a_trace_without_duration_or_spans_is_shown_too() -> None:
    assert "█" in text([span("instant", 3, 3)])
    assert "no spans" in text([])


def test_the_plain_fields_are_enough() -> None:
    bare = span("infer", 0, 1)
    for name in ("depth", "orphan", "critical", "instance"):
        del bare[name]
    assert "infer" in text([bare])


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.integers(1, 300),
)
def test_a_bar_lies_inside_its_row(before: int, took: int, after: int, cells: int) -> None:
    left, length = bar(before, before + took, 0, before + took + after, cells)
    assert 0 <= left < cells
    assert 1 <= length <= cells - left
