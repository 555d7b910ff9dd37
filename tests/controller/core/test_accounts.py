"""What a server's replicas take: added up as they change, and from scratch."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from services.controller.core.accounts import Account, excess_text
from services.controller.core.entities import Replica, Server, Unit
from services.controller.core.memory import Memory
from services.controller.core.states import LEAVING, OCCUPYING, State
from tests.support.residency_world import MIB, key, unit

STATES = [state for state in State if state is not State.ABSENT]
amounts = st.dictionaries(st.sampled_from(["ram", "gpu:0"]), st.integers(0, 100))


@st.composite
def replicas(draw: st.DrawFn) -> Replica:
    return Replica(
        key(draw(st.sampled_from("abcdef"))),
        draw(st.sampled_from(STATES)),
        draw(amounts),
        0.0,
        "",
        slots=draw(st.integers(0, 1)),
    )


def total(replicas: Iterable[Replica], name: str) -> int:
    return sum(replica.reserved.get(name, 0) for replica in replicas)


def account_of(*there: Replica) -> Account:
    account = Account()
    for replica in there:
        account.add(replica, 1)
    return account


@given(st.lists(replicas(), max_size=30), st.sets(st.sampled_from("abcdef")))
def test_sums_are_those_of_what_is_there(history: list[Replica], gone: set[str]) -> None:
    account, there = Account(), dict[Unit, Replica]()
    for replica in history:
        if replica.unit in there:
            account.add(there[replica.unit], -1)
        account.add(replica, 1)
        there[replica.unit] = replica
    for name in gone:
        if unit(name) in there:
            account.add(there.pop(unit(name)), -1)
    occupying = [r for r in there.values() if r.state in OCCUPYING]
    staying = [r for r in there.values() if r.state not in LEAVING]
    for name in ("ram", "gpu:0"):
        assert account.occupied.get(name, 0) == total(occupying, name)
        assert account.staying.get(name, 0) == total(staying, name)
    assert account.occupied_slots == sum(r.slots for r in occupying)
    assert account.staying_slots == sum(r.slots for r in staying)
    assert account.loads == sum(r.state is State.LOADING for r in there.values())
    assert account.busy == sum(r.state in (State.LOADING, State.QUEUED) for r in there.values())


@given(st.lists(replicas(), max_size=8, unique_by=lambda r: r.unit), amounts, st.integers(0, 4))
def test_what_fits_is_within_the_budget_and_the_slots(
    there: list[Replica], more: Memory, most: int
) -> None:
    server = Server("t0", "h", {"ram": 150}, most)
    occupying = [r for r in there if r.state in OCCUPYING]
    fits = total(occupying, "ram") + more.get("ram", 0) <= 150 and (
        not most or sum(r.slots for r in occupying) + 1 <= most
    )
    assert account_of(*there).fits(more, 1, server) == fits


@given(st.lists(replicas(), max_size=8, unique_by=lambda r: r.unit), st.integers(0, 4))
def test_excess_is_of_what_does_not_leave(there: list[Replica], most: int) -> None:
    server = Server("t0", "h", {"ram": 150}, most)
    staying = [r for r in there if r.state not in LEAVING]
    expected = {}
    if (over := total(staying, "ram") - 150) > 0:
        expected["ram"] = over
    if most and (too_many := sum(r.slots for r in staying) - most) > 0:
        expected["models"] = too_many
    assert account_of(*there).excess(server, server.budget, most) == expected


@given(st.lists(replicas(), max_size=8, unique_by=lambda r: r.unit), st.integers(0, 4))
def test_the_free_share_is_between_0_and_1(there: list[Replica], most: int) -> None:
    server = Server("t0", "h", {"ram": 150, "gpu:0": 0}, most)
    assert 0 <= account_of(*there).free_share(server) <= 1


def test_the_free_share_is_the_least_of_any() -> None:
    server = Server("t0", "h", {"ram": 100, "gpu:0": 100}, 4)
    taken = Replica(key("a"), State.READY, {"ram": 30, "gpu:0": 60}, 0.0, "")
    assert account_of(taken).free_share(server) == 0.4
    assert Account().free_share(Server("t0", "h")) == 1.0, "without any limit"


def test_excess_is_said_for_people() -> None:
    assert excess_text({"ram": 300 * MIB}) == "ram 300 MiB"
    assert excess_text({"models": 2}) == "2 too many models"
    assert excess_text({"models": 1, "ram": MIB}) == "1 too many models, ram 1 MiB"
