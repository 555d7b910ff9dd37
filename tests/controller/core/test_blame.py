"""Whose request crashed a server, and who was merely there."""

from hypothesis import given
from hypothesis import strategies as st

from services.controller.core.blame import SAME_CRASH_SECONDS, Break, culprit, lonely
from services.controller.core.entities import ReplicaKey
from tests.support.residency_world import key, unit


def test_the_same_request_on_two_servers_is_to_blame() -> None:
    why = culprit(Break(1.0, key("a", "t1"), key("a", "t0")))
    assert why == "one of its requests was in flight when t0 crashed, and again when t1 did"


def test_one_crash_tells_nothing() -> None:
    assert culprit(Break(1.0, key("a"), None)) is None


def test_the_same_server_twice_may_be_the_servers_own_fault() -> None:
    assert culprit(Break(1.0, key("a", "t0"), key("a", "t0"))) is None


def alone(name: str, *when: float, server: str = "t0") -> list[Break]:
    return [Break(at, key(name, server), None) for at in when]


def test_alone_at_three_crashes() -> None:
    found = lonely(alone("a", 0.0, 10.0, 20.0))
    assert found == {unit("a"): "only its requests were in flight when servers crashed: t0, t0, t0"}


def test_alone_at_two_is_not_enough() -> None:
    assert lonely(alone("a", 0.0, 10.0)) == {}


def test_many_requests_at_one_crash_are_one_crash() -> None:
    assert lonely(alone("a", *(i * SAME_CRASH_SECONDS / 10 for i in range(9)))) == {}


def test_who_was_not_alone_is_not_suspected() -> None:
    bystander = alone("b", 0.1, 10.1, 20.1)
    assert lonely([*alone("a", 0.0, 10.0, 20.0), *bystander]) == {}


def test_what_is_repeated_will_show_by_that() -> None:
    repeated = [one._replace(repeated=True) for one in alone("a", 0.0, 10.0, 20.0)]
    assert lonely(repeated) == {}
    assert lonely([*alone("a", 0.0, 10.0, 20.0), *repeated[:1]]) == {}


def test_crashes_of_different_servers_at_one_time_are_apart() -> None:
    breaks = [
        Break(when, key(name, server), None)
        for when in (0.0, 10.0, 20.0)
        for name, server in (("a", "t0"), ("b", "t1"))
    ]
    assert set(lonely(breaks)) == {unit("a"), unit("b")}


keys = st.builds(
    lambda name, server: key(name, server), *map(st.sampled_from, ("ab", ("t0", "t1")))
)
breaks = st.lists(
    st.builds(Break, st.integers(0, 30).map(float), keys, st.none() | keys), max_size=15
)


@given(breaks, st.randoms())
def test_the_order_in_which_routers_tell_does_not_matter(told: list[Break], random: object) -> None:
    shuffled = told.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert lonely(shuffled) == lonely(told)


@given(breaks)
def test_whoever_is_suspected_broke_off_three_times(told: list[Break]) -> None:
    for suspect in lonely(told):
        assert sum(one.key.unit == suspect for one in told) >= 3


def test_equal_breaks_with_and_without_an_earlier_one() -> None:
    here: ReplicaKey = key("a")
    assert lonely([Break(1.0, here, None), Break(1.0, here, here)]) == {}
