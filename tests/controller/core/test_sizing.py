"""How many bytes are set aside for a unit, and what is learned of it when it changes."""

from dataclasses import replace
from typing import Any

from services.controller.core import events as ev
from services.controller.core.limits import Limits
from services.controller.core.memory import Memory
from services.controller.core.sizing import expected, reservation
from services.controller.core.states import State
from tests.support.residency_world import MIB, World, key, servers, spec, unit

LIMITS = Limits(unknown_share=0.1, margin=1.0)
BUDGET = {"ram": 2000 * MIB}
LEARNED = spec("m", 0, artifact_bytes=MIB, fingerprint="1", learned={"ram": 55 * MIB})


def changed(**fields: Any) -> Memory:
    """Return what is reserved for the unit once its spec has changed."""
    after = replace(LEARNED, fingerprint="2", learned={}, **fields)
    return reservation(replace(after, expected=expected(LEARNED, after)), BUDGET, LIMITS)


def test_what_was_learned_is_scaled_by_the_instances() -> None:
    assert changed(instances=8) == {"ram": 440 * MIB}
    assert changed(instances=100) == BUDGET, "a guess rules nothing out"


def test_what_was_learned_grows_with_the_files() -> None:
    assert changed(artifact_bytes=401 * MIB) == {"ram": 1255 * MIB}
    assert changed(artifact_bytes=MIB // 2) == {"ram": 200 * MIB}, "no less than any guess"


def test_a_guess_covers_the_files_for_each_instance() -> None:
    guessed = spec("m", 0, artifact_bytes=100 * MIB, instances=4)
    assert reservation(guessed, BUDGET, LIMITS) == {"ram": 1200 * MIB}


def test_what_is_expected_lasts_until_the_unit_is_measured() -> None:
    world = World([LEARNED], servers(1, ram=2000))
    grown = replace(LEARNED, fingerprint="2", instances=8, learned={})
    world.register(grown)
    world.register(grown)  # something else of the model has changed
    assert world.fleet.known.specs[unit("m")].expected == {"ram": 440 * MIB}
    world.resident("m")
    world.feed(ev.Measured("t0", {unit("m"): {"ram": 144 * MIB}}, {"ram": 144 * MIB}))
    world.pass_time(20.0)
    world.feed(ev.Measured("t0", {unit("m"): {"ram": 144 * MIB}}, {"ram": 144 * MIB}))
    assert world.learned[-1].memory == {"ram": 144 * MIB}
    assert world.learned[-1].fingerprint == "2"


def test_a_load_that_waits_reserves_what_the_new_files_take() -> None:
    small = spec("m", 0, fingerprint="1", learned={"ram": 50 * MIB})
    world = World([small, spec("n", 250)], servers(1, ram=300))
    world.resident("n")
    world.use("n", in_flight=1)
    world.ask("m")
    assert world.replica("m").reserved["ram"] < 60 * MIB
    world.register(replace(small, fingerprint="2", learned={}, artifact_bytes=90 * MIB))
    assert world.replica("m").state is State.QUEUED
    assert world.replica("m").reserved == {"ram": 300 * MIB}


def test_a_replica_of_other_files_teaches_nothing() -> None:
    world = World([spec("m", 0, fingerprint="1", artifact_bytes=MIB)], servers(1, ram=2000))
    world.resident("m", router="r")
    world.use("m", in_flight=1)
    world.register(spec("m", 0, fingerprint="2", artifact_bytes=MIB))
    world.pass_time(20.0)
    learned = len(world.learned)
    world.feed(ev.Measured("t0", {unit("m"): {"ram": 50 * MIB}}, {"ram": 50 * MIB}))
    world.drained("r")
    world.work()
    assert world.fleet.replica(key("m")) is None
    assert len(world.learned) == learned
    assert world.fleet.known.specs[unit("m")].learned == {}


def test_versions_with_other_instances_are_not_side_by_side() -> None:
    world = World([spec("m:1", 10), spec("m:2", 10, instances=8)], servers(1))
    world.resident("m:1")
    world.resident("m:2")
    assert world.ready() == {"m:2"}
