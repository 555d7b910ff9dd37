"""Which versions an ensemble is made of."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.core.catalogue import (
    Entry,
    Model,
    Part,
    PartSource,
    Version,
    VersionState,
)
from services.registry.core.resolution import parts_first, resolved

APPROVED, REJECTED = VersionState.APPROVED, VersionState.REJECTED


def version(model: str, number: int, *parts: Part, **fields: Any) -> Version:
    return Version(
        **{
            "model": model,
            "number": number,
            "verdict": APPROVED,
            "source": "/s",
            "parts": parts,
            **fields,
        }
    )


def catalogue(*versions: Version, **aliases: int) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for one in versions:
        found.setdefault(one.model, Entry(Model(name=one.model)))
        found[one.model] = found[one.model].with_version(one)
    for model, number in aliases.items():
        found[model] = replace(
            found[model], model=replace(found[model].model, aliases={"default": number})
        )
    return found


def chosen(one: Version) -> list[int]:
    return [part.chosen for part in one.parts]


def test_a_step_without_a_version_takes_the_default_and_keeps_it() -> None:
    ensemble = version("e", 1, Part("a", 0, 0), Part("b", 1, 1))
    found = catalogue(version("a", 1), version("a", 2), version("b", 1), version("b", 2), a=1)
    first = resolved(ensemble, found.get)
    assert (chosen(first), first.parts_problem) == ([1, 1], "")
    later = catalogue(version("a", 1), version("a", 3), version("b", 1))
    assert resolved(first, later.get) == first


def test_a_step_moves_on_when_its_version_stops_answering_unless_it_is_written() -> None:
    found = catalogue(
        version("a", 1), version("a", 2, verdict=REJECTED), version("b", 2, artifact_problem="x")
    )
    moved = resolved(version("e", 1, Part("a", 0, 2)), found.get)
    assert (chosen(moved), moved.parts_problem) == ([1], "")
    written = resolved(version("e", 1, Part("a", 2, 2)), found.get)
    assert written.parts_problem == "its part 'a' version 2 is rejected"
    broken = resolved(version("e", 1, Part("b", 2, 2)), found.get)
    assert broken.parts_problem == "its part 'b' version 2 is invalid: x"


def test_what_is_missing_is_said() -> None:
    found = catalogue(version("a", 1, verdict=VersionState.PENDING))
    for part, problem in (
        (Part("nix", 0, 0), "its part 'nix' is not registered"),
        (Part("a", 2, 2), "its part 'a' version 2 is not registered"),
        (Part("a", 0, 0), "no version of its part 'a' is approved"),
    ):
        assert resolved(version("e", 1, part), found.get).parts_problem == problem
    pending = resolved(version("e", 1, Part("a", 1, 1)), found.get)
    assert pending.state is APPROVED


def test_a_loop_is_refused_by_model_and_shown() -> None:
    found = catalogue(
        version("a", 1, Part("b", 1, 1)), version("b", 1), version("b", 2, Part("a", 1, 1))
    )
    assert resolved(found["a"].version(1), found.get).parts_problem == ""
    looped = resolved(found["b"].version(2), found.get)
    assert looped.parts_problem == "its parts lead back to it: b → a → b"
    self_made = resolved(version("b", 3, Part("b", 1, 1)), found.get)
    assert self_made.parts_problem == "its parts lead back to it: b → b"


MODELS = "abcde"
parts = st.lists(
    st.builds(
        lambda model, number: Part(model, number, number),
        st.sampled_from(MODELS),
        st.integers(0, 2),
    ),
    max_size=3,
)
graphs = st.lists(
    st.tuples(
        st.sampled_from(MODELS), st.integers(1, 2), parts, st.sampled_from([APPROVED, REJECTED])
    ),
    max_size=8,
).map(
    lambda rows: catalogue(
        *(
            version(model, number, *made_of, verdict=verdict)
            for model, number, made_of, verdict in rows
        )
    )
)


def settled(found: dict[str, Entry]) -> dict[str, Entry]:
    """Everything resolved until nothing changes any more."""
    for _ in range(50):
        before = dict(found)
        for entry in list(found.values()):
            for one in entry.versions.values():
                found[entry.name] = found[entry.name].with_version(resolved(one, found.get))
        if found == before:
            return found
    raise AssertionError("never settles")


@settings(deadline=None)
@given(graphs)
def test_what_answers_is_made_of_what_answers_and_has_an_end(found: dict[str, Entry]) -> None:
    found = settled(found)

    def check(one: Version, above: tuple[str, ...]) -> None:
        assert one.model not in above
        for part in one.parts:
            made_of = found[part.model].version(part.chosen)
            assert made_of.answers
            assert part.written in (0, part.chosen)
            check(made_of, (*above, one.model))

    for entry in found.values():
        for one in entry.versions.values():
            if one.answers:
                check(one, ())


@given(st.dictionaries(st.sampled_from(MODELS), st.sets(st.sampled_from("abcdefg"))))
def test_parts_come_before_what_is_made_of_them(parts_of: dict[str, set[str]]) -> None:
    ordered = parts_first(parts_of)
    assert sorted(ordered) == sorted(parts_of)
    acyclic = {
        model: {part for part in made_of if part > model} for model, made_of in parts_of.items()
    }
    place = {model: index for index, model in enumerate(parts_first(acyclic))}
    for model, made_of in acyclic.items():
        assert all(place[part] < place[model] for part in made_of if part in place)


def learned(model: str, source: PartSource = PartSource.CODE) -> Part:
    return Part(model, 0, 0, source)


def test_a_learned_part_counts_only_while_it_can_be_served() -> None:
    caller = version("c", 1, learned("a"), learned("nobody"))
    found = catalogue(version("a", 1), version("a", 2), a=1)
    first = resolved(caller, found.get)
    assert (chosen(first), first.parts_problem, first.state) == ([1, 0], "", APPROVED)
    assert [one.version for one in first.requires] == [1]
    gone = resolved(first, catalogue(version("a", 1, verdict=REJECTED)).get)
    assert (chosen(gone), gone.parts_problem, gone.state) == ([0, 0], "", APPROVED)


def test_learned_parts_that_lead_back_do_not_count() -> None:
    a, b = version("a", 1, learned("b")), version("b", 1, learned("a"))
    first = resolved(a, catalogue(a, b).get)
    assert chosen(first) == [1]
    second = resolved(b, catalogue(first, b).get)
    assert (chosen(second), second.state) == ([0], APPROVED)
    assert resolved(first, catalogue(first, second).get) == first
    declares = version("a", 1, Part("b", 0, 0))
    kept = resolved(declares, catalogue(declares, second).get)
    assert (chosen(kept), kept.parts_problem) == ([1], "")
