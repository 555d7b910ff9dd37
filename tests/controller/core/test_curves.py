"""What room costs on a server, as far as it was asked for."""

from hypothesis import given
from hypothesis import strategies as st

from services.controller.core.curves import INFINITY, SLOTS, STEPS, Curve

NAMES = ("ram", "gpu:0")
sizes = st.integers(0, 50)
amounts = st.fixed_dictionaries(dict.fromkeys(NAMES, sizes))
victims = st.lists(st.tuples(amounts, st.integers(0, 1)), max_size=STEPS + 3)


@given(amounts, st.integers(0, 3), victims, amounts, amounts)
def test_a_curve_that_was_made_for_less_knows_the_same(
    free: dict[str, int],
    slots: int,
    freed: list[tuple[dict[str, int], int]],
    less: dict[str, int],
    more: dict[str, int],
) -> None:
    ranked = [(float(rank), amount, count) for rank, (amount, count) in enumerate(freed)]
    room, need = {**free, SLOTS: slots}, {**more, SLOTS: 1}
    some = Curve(room, ranked, {**less, SLOTS: 1})
    everything = Curve(room, ranked, dict.fromkeys(room, 10**9))
    assert everything.reaches(need)
    assert some.lowest == everything.lowest
    assert some.reaches(less)
    if some.reaches(need):
        assert some.cost(need) == everything.cost(need)


@given(amounts, victims, amounts)
def test_the_cost_is_the_rank_of_the_first_victim_that_makes_room(
    free: dict[str, int], freed: list[tuple[dict[str, int], int]], need: dict[str, int]
) -> None:
    ranked = [(float(rank), amount, count) for rank, (amount, count) in enumerate(freed)]
    cost = Curve(free, ranked, need).cost(need)
    room, expected = dict(free), -INFINITY
    for rank, amount, _ in ranked[:STEPS]:
        if all(need[name] <= room[name] for name in NAMES):
            break
        expected = rank
        room = {name: room[name] + amount[name] for name in NAMES}
    if any(need[name] > free[name] for name in NAMES) and not ranked:
        expected = INFINITY
    assert cost == expected
