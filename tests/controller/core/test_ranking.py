"""The order in which replicas leave, against a sorted list."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from services.controller.core.entities import Unit
from services.controller.core.ranking import POLICIES, Order, gdsf, lru
from tests.support.residency_world import unit

UNITS = [unit(name) for name in "abcdefgh"]
ranks = st.integers(0, 6).map(float)
moves = st.tuples(st.just("set"), st.sampled_from(UNITS), ranks) | st.tuples(
    st.sampled_from(["gone", "walk"]), st.sampled_from(UNITS), ranks
)


class Model:
    """An order as `Fleet` keeps it: it hears of newcomers and of ranks that fall."""

    def __init__(self) -> None:
        self.order = Order()
        self.ranks: dict[Unit, float] = {}

    def move(self, what: str, which: Unit, rank: float) -> None:
        if what == "gone":
            self.ranks.pop(which, None)
        elif what == "walk":
            for _, found in self.order.walk(self.ranks.get):
                if found == which:
                    break
        else:
            before = self.ranks.get(which)
            self.ranks[which] = rank
            if before is None or rank < before:
                self.order.push(rank, which)

    def expected(self) -> list[tuple[float, Unit]]:
        return sorted((rank, which) for which, rank in self.ranks.items())


@given(st.lists(moves, max_size=60))
def test_the_order_is_that_of_the_ranks(history: list[tuple[str, Unit, float]]) -> None:
    model = Model()
    for move in history:
        model.move(*move)
        if model.ranks:
            assert model.order.lowest() <= min(model.ranks.values())
    assert list(model.order.walk(model.ranks.get)) == model.expected()
    assert list(model.order.walk(model.ranks.get)) == model.expected(), "a walk changes nothing"


@given(st.lists(moves, max_size=40), st.integers(0, 8))
def test_a_walk_that_is_left_early_loses_nothing(
    history: list[tuple[str, Unit, float]], steps: int
) -> None:
    model = Model()
    for move in history:
        model.move(*move)
    first = list(islice(model.order.walk(model.ranks.get), steps))
    assert first == model.expected()[: len(first)]
    assert list(model.order.walk(model.ranks.get)) == model.expected()


def test_an_order_of_nothing() -> None:
    order = Order()
    assert order.lowest() == float("inf")
    assert list(order.walk(lambda _: 1.0)) == []


uses = st.floats(0, 1e6)


@given(last=uses, uses=uses, reload=uses, share=st.floats(0, 1), clock=uses)
def test_lru_knows_only_when_it_was_used_last(
    last: float, uses: float, reload: float, share: float, clock: float
) -> None:
    assert lru(last, uses, reload, share, clock) == last


def test_gdsf_by_hand() -> None:
    """K = L + F * C / S, of the paper named at `gdsf`."""
    assert gdsf(999.0, 3.0, 2.0, 0.25, 10.0) == 34.0
    assert gdsf(0.0, 0.0, 2.0, 0.25, 10.0) == 10.0, "never used: what the last victim was worth"


@given(uses=st.floats(0.01, 1e3), reload=st.floats(0.01, 1e3), share=st.floats(0.001, 1))
def test_gdsf_keeps_the_used_the_dear_and_the_small(
    uses: float, reload: float, share: float
) -> None:
    rank = gdsf(0.0, uses, reload, share, 5.0)
    assert gdsf(0.0, uses * 2, reload, share, 5.0) > rank
    assert gdsf(0.0, uses, reload * 2, share, 5.0) > rank
    assert gdsf(0.0, uses, reload, share / 2, 5.0) > rank
    assert gdsf(0.0, uses, reload, share, 6.0) > rank
    assert gdsf(0.0, uses, reload, 0.0, 5.0) < float("inf"), "an ensemble has no share"


def test_the_policies_have_the_names_that_settings_use() -> None:
    assert (POLICIES["lru"], POLICIES["gdsf"]) == (lru, gdsf)
