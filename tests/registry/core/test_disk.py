"""What leaves the disk, in which order, why, and what never does."""

from hypothesis import given
from hypothesis import strategies as st

from services.registry.core.disk import (
    Holding,
    Standing,
    choose,
    own_bytes,
    unneeded,
    why_kept,
)


def holding(name: str, used: int, kept: str = "", present: bool = True, **contents: int) -> Holding:
    return Holding(name, (f"models/{name}/versions/1",), contents, used, kept, present)


def test_the_least_recently_used_leaves_first_and_no_more_than_needed() -> None:
    choice = choose(
        [holding("new", 9, n=10), holding("old", 1, o=10), holding("older", 0, p=5)], 12, "why"
    )
    assert [one.digest for one in choice.leaving] == ["older", "old"]
    assert [one.frees for one in choice.leaving] == [5, 10]
    assert choice.leaving[1].reason == (
        "why: number 2 of 3 that may leave, the least recently used first"
    )
    assert choice.short == 0


def test_what_is_kept_never_leaves() -> None:
    choice = choose([holding("a", 1, "it is pinned", a=10), holding("b", 2, b=10)], 15, "why")
    assert choice.leaving == ()
    assert choice.short == 5


def test_a_shared_content_is_gone_once_all_that_have_it_are() -> None:
    both = [holding("a", 1, x=10, a=1), holding("b", 2, x=10, b=2)]
    assert own_bytes(both) == {"a": 1, "b": 2}
    assert [one.frees for one in choose(both, 2, "why").leaving] == [1, 12]
    kept = [both[0], holding("b", 2, "it is pinned", x=10, b=2)]
    assert choose(kept, 2, "why").short == 1


def test_what_has_left_takes_no_room_and_an_upload_does() -> None:
    absent = holding("a", 1, present=False, a=10)
    upload = Holding("u", (), {"u": 5}, present=False, kept="they wait to be registered")
    assert choose([absent, upload], 1, "why").short == 1
    assert own_bytes([absent, upload]) == {"u": 5}
    assert unneeded({"a": 10, "u": 5, "w": 1}, [absent, upload], {"w"}) == {"a": 10}


def test_why_files_stay() -> None:
    assert why_kept(Standing(refetchable=True)) == ""
    for standing, reason in (
        (Standing(refetchable=False), "uploaded"),
        (Standing(refetchable=False, registered=False), "wait to be registered"),
        (Standing(refetchable=True, pinned=True), "pinned"),
        (Standing(refetchable=True, resident=True), "a server holds"),
        (Standing(refetchable=True, busy=True), "being fetched"),
        (Standing(refetchable=True, waiting=True), "complete the config"),
        (Standing(refetchable=True, residents_known=False), "has not said"),
    ):
        assert reason in why_kept(standing)


CONTENTS = {name: size for size, name in enumerate("abcdefgh", start=1)}


@given(
    st.lists(
        st.builds(
            Holding,
            st.uuids().map(str),
            st.just(("models/m/versions/1",)),
            st.sets(st.sampled_from("abcdefgh")).map(
                lambda some: {one: CONTENTS[one] for one in some}
            ),
            st.integers(0, 9),
            st.sampled_from(["", "", "it is pinned"]),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(0, 40),
)
def test_a_choice_frees_what_it_says(holdings: list[Holding], needed: int) -> None:
    choice = choose(holdings, needed, "why")
    gone = {one.digest for one in choice.leaving}
    before = {name for one in holdings if one.takes_room for name in one.contents}
    after = {
        name
        for one in holdings
        if one.takes_room and one.digest not in gone
        for name in one.contents
    }
    freed = sum(CONTENTS[name] for name in before - after)
    assert freed == sum(one.frees for one in choice.leaving)
    assert choice.short or freed >= needed
    assert not any(one.kept or not one.present for one in holdings if one.digest in gone)
