"""Traces: how they are kept, and in which order they are read."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.embedded.collector.core import Row, Span, rows, summary
from services.embedded.collector.store import TraceStore


def span(name: str, start: int, end: int, parent: str = "", trace: str = "t", **more: str) -> Span:
    """Named after its id."""
    return Span(
        trace_id=trace,
        span_id=name,
        parent_span_id=parent,
        service=more.get("service", "router"),
        instance="",
        name=name,
        kind="internal",
        start_unix_nano=start,
        end_unix_nano=end,
        status="error" if "error" in more else "unset",
    )


def outline(found: Sequence[Row]) -> list[str]:
    """`--name` for depth 2, `?` for an orphan."""
    return ["-" * row.depth + row.span.name + "?" * row.orphan for row in found]


def critical(*spans: Span) -> list[str]:
    return [row.span.name for row in rows(spans) if row.critical]


def test_parents_stand_before_their_children_whatever_came_first() -> None:
    found = rows(
        [
            span("compute", 30, 60, "forward"),
            span("load", 5, 20, "infer"),
            span("forward", 25, 70, "infer"),
            span("infer", 0, 100),
        ]
    )
    assert outline(found) == ["infer", "-load", "-forward", "--compute"]


def test_an_orphan_stands_at_the_outside_with_its_own_children() -> None:
    found = rows(
        [span("infer", 10, 90), span("late", 20, 30, "never seen"), span("in it", 21, 22, "late")]
    )
    assert outline(found) == ["infer", "late?", "-in it"]


def test_the_critical_path_is_what_was_waited_for() -> None:
    assert critical(
        span("infer", 0, 100),
        span("route", 0, 10, "infer"),
        span("load", 10, 60, "infer"),
        span("read", 15, 55, "load"),
        span("log", 20, 40, "infer"),  # beside the load
        span("forward", 60, 99, "infer"),
    ) == ["infer", "route", "load", "read", "forward"]


def test_a_child_that_outlives_its_parent_counts_as_far_as_that_goes() -> None:
    assert critical(
        span("infer", 0, 50), span("stream", 40, 90, "infer"), span("after", 60, 80, "infer")
    ) == ["infer", "stream"]


def test_a_summary_tells_the_whole_of_it() -> None:
    said = summary(
        [
            span("orphan", 1, 5, "gone", service="triton"),
            span("infer", 10, 90),
            span("load", 20, 30, "infer", service="controller", error="yes"),
        ]
    )
    assert (said.root, said.services) == ("infer", ("triton", "router", "controller"))
    assert (said.start_unix_nano, said.end_unix_nano) == (1, 90)
    assert (said.spans, said.errors) == (3, 1)


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 50), st.integers(0, 50)),
        unique_by=lambda made: made[0],
        min_size=1,
    )
)
def test_every_span_is_shown_once_even_where_parents_go_in_circles(
    made: list[tuple[int, int, int, int]],
) -> None:
    spans = [span(f"{me}", start, start + took, f"{up}") for me, up, start, took in made]
    found = rows(spans)
    assert sorted(row.span.name for row in found) == sorted(one.name for one in spans)
    assert found[0].depth == 0
    for before, row in itertools.pairwise(found):
        assert row.depth <= before.depth + 1
    summary(spans)


def test_a_chain_of_thousands_is_no_trouble() -> None:
    chain = [span(f"{n}", n, 10_000, f"{n - 1}" if n else "") for n in range(5000)]
    assert rows(chain)[-1].depth == 4999


def test_the_oldest_trace_goes_whole_and_is_counted() -> None:
    store = TraceStore(max_spans=4, max_traces=100)
    store.add([span("a", 0, 1, trace="1"), span("b", 0, 1, trace="1"), span("c", 0, 1, trace="2")])
    store.add([span("d", 0, 1, trace="3"), span("e", 0, 1, trace="3")])
    assert store.trace("1") == []
    assert (store.traces, store.spans) == (2, 3)
    assert (store.dropped_traces, store.dropped_spans) == (1, 2)
    assert [one.trace_id for one in store.newest(9)] == ["3", "2"]
    assert [one.trace_id for one in store.newest(1)] == ["3"]


def test_the_number_of_traces_is_limited_too() -> None:
    store = TraceStore(max_spans=100, max_traces=2)
    store.add(span("a", 0, 1, trace=str(number)) for number in range(5))
    assert [one.trace_id for one in store.newest(9)] == ["4", "3"]
    assert (store.spans, store.dropped_spans, store.dropped_traces) == (2, 3, 3)


def test_one_trace_cannot_fill_the_store_beyond_its_limit() -> None:
    store = TraceStore(max_spans=3, max_traces=9)
    store.add([span("other", 0, 1, trace="0")])
    store.add(span(str(number), 0, 1, trace="1") for number in range(10))
    assert [one.name for one in store.trace("1")] == ["0", "1", "2"]
    assert (store.traces, store.spans, store.dropped_spans) == (1, 3, 8)


def test_a_span_sent_again_is_not_another_one() -> None:
    store = TraceStore(max_spans=3, max_traces=9)
    for _ in range(2):
        store.add([span("a", 0, 1), span("b", 0, 2)])
    assert (store.spans, len(store.trace("t"))) == (2, 2)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5))),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_the_limits_hold_and_the_counts_add_up(
    sent: list[tuple[int, int]], max_spans: int, max_traces: int
) -> None:
    store = TraceStore(max_spans, max_traces)
    for trace, name in sent:
        store.add([span(str(name), 0, 1, trace=str(trace))])
        held = store.newest(99)
        assert store.spans == sum(one.spans for one in held) <= max_spans
        assert store.traces == len(held) <= max_traces
