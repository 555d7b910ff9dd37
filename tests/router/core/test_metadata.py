from hypothesis import given
from hypothesis import strategies as st

from services.router.core.routing.metadata import forwarded, read_metadata

NAMES = st.sampled_from(
    [
        "x-other",
        "authorization",
        "traceparent",
        "tracestate",
        "grpc-timeout",
        "user-agent",
        "content-length",
        "triton-grpc-protocol-key",
        "x-shoal-priority",
        "x-shoal-explain",
    ]
)
VALUES = st.text(max_size=5) | st.binary(max_size=5)


@given(st.lists(st.tuples(NAMES, VALUES)).map(tuple))
def test_an_entry_goes_on_or_is_for_this_hop(metadata: tuple[tuple[str, str | bytes], ...]) -> None:
    said = read_metadata(metadata)
    assert said.pairs == metadata
    assert said.onward == forwarded(metadata)
    assert {key for key, _ in said.onward} <= {"x-other", "authorization"}
    first = {key: value for key, value in reversed(metadata) if key.startswith("x-shoal-")}
    assert said.shoal == first
    assert said.size == sum(len(key) + len(value) + 32 for key, value in metadata)
