"""States, the default version, etags, and what may be deleted."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import VersionNotFound
from services.registry.core import rules
from services.registry.core.catalogue import (
    MOVES,
    Arm,
    Entry,
    Model,
    Move,
    Part,
    Target,
    TrafficPolicy,
    Version,
    VersionState,
)
from services.registry.core.errors import AlreadyExists, EtagMismatch, IllegalState

PENDING, APPROVED, REJECTED, INVALID, WAITING = VersionState
VERDICTS = (PENDING, APPROVED, REJECTED)


def version(number: int = 1, model: str = "m", **fields: Any) -> Version:
    return Version(
        **{"model": model, "number": number, "verdict": APPROVED, "source": "/s", **fields}
    )


def entry(*versions: Version, name: str = "m", **model: Any) -> Entry:
    return Entry(Model(name=name, **model), {one.number: one for one in versions})


verdicts = st.sampled_from(VERDICTS)
problems = st.sampled_from(["", "it is broken"])
versions = st.dictionaries(
    st.integers(1, 6), st.tuples(verdicts, problems, problems), max_size=5
).map(
    lambda found: entry(
        *(
            version(number, verdict=verdict, artifact_problem=files, parts_problem=parts)
            for number, (verdict, files, parts) in found.items()
        )
    )
)


@given(verdicts, problems, problems)
def test_a_version_is_invalid_exactly_while_it_has_a_problem_and_is_not_rejected(
    verdict: VersionState, files: str, parts: str
) -> None:
    one = version(verdict=verdict, artifact_problem=files, parts_problem=parts)
    assert (one.state is INVALID) == (bool(files or parts) and verdict is not REJECTED)
    assert replace(one, artifact_problem="", parts_problem="").state is verdict


@pytest.mark.parametrize(("state", "move"), [*itertools.product(VersionState, Move)])
def test_moves_follow_the_table(state: VersionState, move: Move) -> None:
    one = version(
        verdict=APPROVED if state is INVALID else state,
        artifact_problem="no model.py" if state is INVALID else "",
    )
    if (state, move) in MOVES:
        assert rules.decide(one, move).state is MOVES[state, move]
    else:
        with pytest.raises(IllegalState) as caught:
            rules.decide(one, move)
        assert caught.value.metadata["state"] == state.value


def test_the_table_lets_nobody_approve_what_is_invalid_and_everybody_reject_anything() -> None:
    assert (INVALID, Move.APPROVE) not in MOVES
    assert all(MOVES[state, Move.REJECT] is REJECTED for state in VersionState)


def test_a_rejected_version_with_broken_files_cannot_be_approved() -> None:
    with pytest.raises(IllegalState, match=r"no model\.py"):
        rules.decide(version(verdict=REJECTED, artifact_problem="no model.py"), Move.APPROVE)


@given(versions, st.none() | st.integers(1, 6))
def test_the_default_is_the_alias_if_approved_else_the_highest_approved(
    found: Entry, aliased: int | None
) -> None:
    aliases = {} if aliased is None else {"default": aliased, "other": 1}
    found = replace(found, model=replace(found.model, aliases=aliases))
    approved = [number for number, one in found.versions.items() if one.state is APPROVED]
    if aliased in approved:
        assert found.default_version == aliased
    else:
        assert found.default_version == max(approved, default=0)


@given(versions, versions, st.integers(2, 9))
def test_only_what_differs_gets_the_new_revision(old: Entry, new: Entry, revision: int) -> None:
    before = rules.stamped(None, old, 1, 100)
    kept = {
        number: before.versions[number]
        if one == replace(before.versions.get(number, one), created_us=0, revision=0)
        and number in before.versions
        else one
        for number, one in new.versions.items()
    }
    after = rules.stamped(before, Entry(before.model, kept), revision, 200)
    assert after.model == before.model
    for number, one in after.versions.items():
        if number in before.versions and one.revision == 1:
            assert one == before.versions[number]
        else:
            assert one.revision == revision
    assert rules.stamped(after, after, revision + 1, 300) == after


def test_the_etag_of_a_policy_changes_with_its_arms_only() -> None:
    one, two = (TrafficPolicy((Arm(Target("m", version=1), weight),)) for weight in (1, 2))
    first = rules.stamped(None, entry(version(), policy=one), 1, 100)
    same = rules.stamped(first, first.with_policy(TrafficPolicy(one.arms)), 2, 200)
    assert same == first
    other = rules.stamped(first, first.with_policy(two), 3, 300)
    assert other.model.policy == replace(two, revision=3)
    assert (other.model.revision, other.model.updated_us, other.model.created_us) == (3, 300, 100)


def test_an_etag_matches_itself_and_none_matches_everything() -> None:
    rules.check_etag("models/m", "", 7)
    rules.check_etag("models/m", rules.etag(7), 7)
    with pytest.raises(EtagMismatch) as caught:
        rules.check_etag("models/m", rules.etag(6), 7)
    assert caught.value.metadata == {"name": "models/m", "given": "r6", "current": "r7"}


def test_a_number_is_given_once_unless_its_version_cannot_be_served() -> None:
    rules.check_registrable(None, 1)
    rules.check_registrable(entry(version(1)), 2)
    rules.check_registrable(entry(version(1, artifact_problem="gone")), 1)
    with pytest.raises(AlreadyExists):
        rules.check_registrable(entry(version(1)), 1)
    with pytest.raises(AlreadyExists):
        rules.check_registrable(entry(version(1, verdict=REJECTED, artifact_problem="x")), 1)


@given(versions)
def test_the_next_number_is_free(found: Entry) -> None:
    assert rules.next_number(found) not in found.versions


def test_files_that_were_changed_keep_what_people_said_and_what_was_chosen() -> None:
    known = version(
        verdict=PENDING,
        pinned=True,
        declared_memory={"ram": 5},
        created_us=3,
        revision=4,
        fingerprint="old",
        parts=(Part("a", 0, 2), Part("b", 1, 1)),
    )
    found = version(fingerprint="new", artifact_bytes=9, parts=(Part("a", 0, 0), Part("b", 3, 3)))
    assert rules.adopted(known, found) == replace(
        known,
        fingerprint="new",
        artifact_bytes=9,
        parts=(Part("a", 0, 2), Part("b", 3, 3)),
    )
    assert rules.adopted(known, replace(found, fingerprint="old")) == known
    assert rules.adopted(None, found) == found


def test_an_alias_is_given_to_versions_that_answer() -> None:
    found = entry(version(1), version(2, verdict=PENDING), version(3, verdict=REJECTED))
    assert rules.set_alias(found, "canary", 2).alias("canary") == 2
    with pytest.raises(IllegalState):
        rules.set_alias(found, "canary", 3)
    with pytest.raises(VersionNotFound):
        rules.set_alias(found, "canary", 4)


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        (entry(version(1), version(2), aliases={"live": 1}), "alias 'live' names it"),
        (
            entry(
                version(1), policy=TrafficPolicy((Arm(Target("m", version=1), 1),)), name="other"
            ),
            "the traffic policy of model 'other' names it",
        ),
        (
            entry(version(4, "pipeline", parts=(Part("m", 0, 1),)), name="pipeline"),
            "models/pipeline/versions/4 requires it",
        ),
    ],
)
def test_what_is_in_use_is_not_deleted(user: Entry, reason: str) -> None:
    found = user if user.name == "m" else entry(version(1), version(2))
    with pytest.raises(IllegalState) as caught:
        rules.drop_version(found, 1, [user])
    assert reason in caught.value.metadata["hint"]
    assert 2 not in rules.drop_version(found, 2, [user]).versions


def test_a_model_goes_only_when_no_other_model_uses_it() -> None:
    own = entry(version(1), aliases={"a": 1}, policy=TrafficPolicy((Arm(Target("m"), 1),)))
    rules.check_removable(own, [own])
    for user in (
        entry(name="p", policy=TrafficPolicy((Arm(Target("m", alias="a"), 1),))),
        entry(version(1, "p", parts=(Part("m", 1, 1),)), name="p"),
    ):
        with pytest.raises(IllegalState):
            rules.check_removable(own, [own, user])


def test_an_alias_in_a_policy_is_not_deleted() -> None:
    policy = TrafficPolicy((Arm(Target("m", alias="a"), 1),))
    found = entry(version(1), aliases={"a": 1, "b": 1}, policy=policy)
    with pytest.raises(IllegalState):
        rules.drop_alias(found, "a", [found])
    assert set(rules.drop_alias(found, "b", [found]).model.aliases) == {"a"}
    with pytest.raises(VersionNotFound):
        rules.drop_alias(found, "c", [found])
