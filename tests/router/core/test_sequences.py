"""What a sequence of requests stays on."""

from services.router.core.routing.routes import Replica, Target
from services.router.core.routing.sequences import (
    IDLE_SECONDS,
    Sequences,
    ends_sequence,
    home_server,
)
from services.router.core.wire.request import Sequence

ONE, TWO = Target("m", 1), Target("m", 2)


def test_a_sequence_stays_until_it_ends() -> None:
    sequences = Sequences()
    assert sequences.replica(ONE, 7) is None
    sequences.tie(7, Replica("a", ONE), 0.0)
    assert sequences.replica(ONE, 7) == Replica("a", ONE)
    assert sequences.replica(TWO, 7) is None
    assert sequences.replica(ONE, "7") is None
    sequences.end(ONE, 7)
    sequences.end(ONE, 7)
    assert sequences.replica(ONE, 7) is None


def test_sequences_are_counted_by_replica_with_the_newest_use() -> None:
    sequences = Sequences()
    a, b = Replica("a", ONE), Replica("b", ONE)
    sequences.tie(1, a, 10.0)
    sequences.tie(2, a, 4.0)
    sequences.tie("x", b, 12.0)
    assert sequences.usage(15.0) == {a: (2, 5.0), b: (1, 3.0)}
    sequences.tie(1, b, 15.0)
    assert sequences.usage(15.0) == {a: (1, 11.0), b: (2, 0.0)}


def test_one_that_is_not_used_is_given_up() -> None:
    sequences = Sequences()
    a = Replica("a", ONE)
    sequences.tie(1, a, 0.0)
    sequences.tie(2, a, 1.0)
    assert sequences.usage(IDLE_SECONDS) == {a: (2, IDLE_SECONDS - 1.0)}
    assert sequences.usage(IDLE_SECONDS + 0.5) == {a: (1, IDLE_SECONDS - 0.5)}
    assert sequences.replica(ONE, 1) is None
    assert sequences.replica(ONE, 2) == a


def test_a_server_more_moves_only_the_sequences_that_are_at_home_there() -> None:
    ids: list[int | str] = [*range(1, 500), *map(str, range(1, 500))]
    before = {id_: home_server(["a", "b", "c"], id_) for id_ in ids}
    after = {id_: home_server(["d", "c", "b", "a"], id_) for id_ in ids}
    assert {after[id_] for id_ in ids if after[id_] != before[id_]} == {"d"}
    for server in "abcd":
        assert 0.15 < sum(where == server for where in after.values()) / len(ids) < 0.35
    assert {home_server(["a", "b", "c"], 7), home_server(["a", "b", "c"], "7")} <= {"a", "b", "c"}


START, MIDDLE, LAST = (
    Sequence(7, *flags) for flags in ((True, False), (False, False), (False, True))
)


def test_what_goes_on_with_a_sequence_and_what_begins_one() -> None:
    sequences = Sequences()
    assert not any(sequences.begun(ONE, asked) for asked in (START, MIDDLE, LAST))
    sequences.tie(7, Replica("a", ONE), 0.0)
    assert [sequences.begun(ONE, asked) for asked in (START, MIDDLE, LAST)] == [False, True, True]
    assert not sequences.begun(TWO, MIDDLE)


def test_a_sequence_is_over_with_its_last_request_or_when_it_never_began() -> None:
    assert ends_sequence(LAST, begun=True, failed=False)
    assert ends_sequence(START, begun=False, failed=True)
    assert ends_sequence(MIDDLE, begun=False, failed=True)
    assert not ends_sequence(MIDDLE, begun=True, failed=True)
    assert not ends_sequence(MIDDLE, begun=False, failed=False)
