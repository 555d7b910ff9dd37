"""What becomes of a request after each attempt."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.admission.rate import RetryBudget
from services.router.core.attempts import (
    ACTIONS,
    FIRST,
    MAX_PAUSE_SECONDS,
    PATIENCE_SECONDS,
    PAUSE_SECONDS,
    Action,
    Attempts,
    Loss,
    Miss,
    Progress,
    Step,
    next_step,
)
from services.router.core.routing.routes import Replica, Target
from services.router.core.wire.verdict import Verdict

MODEL = Target("m", 1)
A, B = Replica("a", MODEL), Replica("b", MODEL)


def step(
    verdict: Verdict,
    attempts: Attempts = FIRST[True],
    *,
    progress: Progress = Progress.NONE,
    replica: Replica = A,
    deadline: float | None = 110.0,
    now: float = 100.0,
    chance: float = 0.5,
    budget: RetryBudget | None = None,
    called: str = "",
) -> Step:
    return next_step(
        verdict,
        progress,
        replica,
        attempts,
        deadline=deadline,
        now=now,
        chance=chance,
        budget=budget or RetryBudget(),
        called=called,
    )


def spent(now: float) -> RetryBudget:
    budget = RetryBudget()
    while budget.retry(now):
        pass
    return budget


def test_the_table_has_a_row_for_everything() -> None:
    assert set(ACTIONS) == set(itertools.product(Verdict, Progress))


def test_an_answer_goes_to_the_client_and_costs_nothing() -> None:
    budget = RetryBudget()
    assert step(Verdict.ANSWER, budget=budget) == Step(Action.ANSWER)
    assert (budget.retried, budget.refused) == (0, 0)


@pytest.mark.parametrize("verdict", [Verdict.MISS, Verdict.UNREACHED])
def test_what_no_server_began_is_asked_for_again_without_a_budget(verdict: Verdict) -> None:
    budget = spent(100.0)
    refused = budget.refused
    made = step(verdict, FIRST[False], budget=budget)
    assert (made.action, made.loss) == (Action.AGAIN, None)
    assert made.attempts is not None
    assert made.attempts.missed == Miss("a", unhealthy=False)
    assert made.attempts.asks
    assert budget.refused == refused


def test_what_a_server_broke_off_with_is_repeated_once() -> None:
    first = step(Verdict.BROKEN)
    assert (first.action, first.loss) == (Action.AGAIN, Loss(A, None, repeated=True))
    assert first.attempts is not None
    second = step(Verdict.BROKEN, first.attempts, replica=B)
    assert (second.action, second.loss) == (Action.LOSE, Loss(B, A, repeated=False))


def test_a_miss_after_the_repeat_is_asked_for_again_and_the_first_loss_is_remembered() -> None:
    first = step(Verdict.BROKEN)
    assert first.attempts is not None
    second = step(Verdict.MISS, first.attempts, replica=B)
    assert second.attempts is not None
    assert (second.attempts.lost_on, second.attempts.repeatable) == (A, False)
    third = step(Verdict.BROKEN, second.attempts, replica=B)
    assert third == Step(Action.LOSE, Loss(B, A, repeated=False))


def test_a_dead_process_is_repeated_once_and_no_lost_server() -> None:
    made = step(Verdict.UNHEALTHY)
    assert (made.action, made.loss) == (Action.AGAIN, None)
    assert made.attempts is not None
    assert made.attempts.missed == Miss("a", unhealthy=True)
    assert step(Verdict.UNHEALTHY, made.attempts).action is Action.LOSE


def test_nothing_is_called_repeated_that_is_not() -> None:
    """Whatever the reason is, the Controller is told what is really done."""
    told = [
        step(Verdict.BROKEN, FIRST[False]),
        step(Verdict.BROKEN, progress=Progress.PARTLY),
        step(Verdict.BROKEN, progress=Progress.UNCERTAIN),
        step(Verdict.BROKEN, budget=spent(100.0)),
        step(Verdict.BROKEN, deadline=100.0 + PAUSE_SECONDS / 4),
        step(Verdict.BROKEN, FIRST[True]._replace(until=99.0), deadline=None),
    ]
    assert {(one.action, one.loss) for one in told} == {(Action.LOSE, Loss(A, None, False))}


@pytest.mark.parametrize("progress", [Progress.PARTLY, Progress.UNCERTAIN])
@pytest.mark.parametrize("verdict", [one for one in Verdict if one is not Verdict.ANSWER])
def test_what_is_not_repeated_spends_no_budget(verdict: Verdict, progress: Progress) -> None:
    budget = RetryBudget()
    answered = verdict is Verdict.NEEDS_PART
    right = Action.ANSWER if answered else Action.LOSE
    assert step(verdict, progress=progress, budget=budget).action is right
    assert (budget.retried, budget.refused) == (0, 0)


def test_a_model_that_called_another_in_vain_is_asked_once_more_beside_it() -> None:
    made = step(Verdict.NEEDS_PART, called="part")
    assert (made.action, made.loss) == (Action.AGAIN, None)
    assert made.attempts is not None
    assert made.attempts.missed == Miss("a", unhealthy=False, called="part")
    assert step(Verdict.NEEDS_PART, made.attempts, called="other") == Step(Action.ANSWER)


def test_its_answer_stands_where_it_may_not_be_asked_again() -> None:
    told = [
        step(Verdict.NEEDS_PART, FIRST[False], called="part"),
        step(Verdict.NEEDS_PART, called="part", budget=spent(100.0)),
        step(Verdict.NEEDS_PART, called="part", deadline=100.0 + PAUSE_SECONDS / 4),
    ]
    assert told == [Step(Action.ANSWER)] * 3


def test_without_a_deadline_misses_end_after_a_minute() -> None:
    made = step(Verdict.MISS, deadline=None, now=100.0)
    assert made.attempts is not None
    assert made.attempts.until == 100.0 + PATIENCE_SECONDS
    later = step(Verdict.MISS, made.attempts, deadline=None, now=100.0 + PATIENCE_SECONDS)
    assert later.action is Action.AGAIN
    last = step(Verdict.MISS, made.attempts, deadline=None, now=100.1 + PATIENCE_SECONDS)
    assert last.action is Action.LOSE


def test_a_withdrawn_grant_is_looked_up_in_the_table_unless_a_server_broke() -> None:
    missed = step(Verdict.MISS).attempts
    broken = step(Verdict.BROKEN).attempts
    assert missed is not None
    assert broken is not None
    assert not missed.withdrawn().asks
    assert broken.withdrawn().asks


@given(st.integers(0, 5000), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_are_spread_and_have_an_end(misses: int, chance: float) -> None:
    attempts = FIRST[True]._replace(misses=misses)
    made = step(Verdict.MISS, attempts, chance=chance, deadline=None)
    longest = min(MAX_PAUSE_SECONDS, PAUSE_SECONDS * 2 ** min(misses, 10))
    assert longest / 2 <= made.pause <= longest


@given(
    st.lists(st.tuples(st.sampled_from(Verdict), st.sampled_from(Progress)), max_size=30),
    st.booleans(),
)
def test_no_history_repeats_what_broke_twice(
    outcomes: list[tuple[Verdict, Progress]], repeatable: bool
) -> None:
    attempts, budget = FIRST[repeatable], RetryBudget()
    repeats = 0
    for verdict, progress in outcomes:
        made = step(verdict, attempts, progress=progress, deadline=None, budget=budget)
        if made.attempts is None:
            break
        repeats += verdict in (Verdict.BROKEN, Verdict.UNHEALTHY, Verdict.NEEDS_PART)
        attempts = made.attempts
    assert repeats <= repeatable
    assert budget.retried == repeats
