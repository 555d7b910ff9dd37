"""The Router's placement table: what changes do to it, and what they withdraw."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import ShoalError
from services.router.core.routing.routes import Arm, Replica, Route, Target, VersionRoute, resolve
from services.router.core.routing.table import NONE, Change, Revision, StaleEpoch, Table
from services.router.core.wire.request import head
from shoal.protobuf import text_field

ADDRESSES = {"t0": "h:1", "t1": "h:2"}

Placed = Mapping[str, Mapping[int, tuple[str, ...]]]  # servers by version by model


def routes(placed: Placed) -> dict[str, Route]:
    return {
        model: Route(versions={version: VersionRoute("d", on) for version, on in versions.items()})
        for model, versions in placed.items()
    }


def snapshot(
    placed: Placed,
    revision: tuple[int, int] = (1, 1),
    addresses: Mapping[str, str] = ADDRESSES,
    unknown: str = "",
) -> Change:
    """`unknown`: names of servers, in one text."""
    return Change(Revision(*revision), True, routes(placed), addresses, frozenset(unknown.split()))


def delta(
    placed: Placed,
    revision: tuple[int, int] = (1, 2),
    *,
    addresses: Mapping[str, str] | None = None,
    unknown: str = "",
    removed: str = "",
    removed_servers: str = "",
) -> Change:
    return Change(
        Revision(*revision),
        False,
        routes(placed),
        addresses or {},
        frozenset(unknown.split()),
        frozenset(removed.split()),
        frozenset(removed_servers.split()),
    )


def replica(server: str, model: str = "m", version: int = 1) -> Replica:
    return Replica(server, Target(model, version))


def table(*changes: Change) -> Table:
    made = Table()
    for change in changes:
        made.apply(change)
    return made


def placed_in(made: Table) -> dict[str, dict[int, tuple[str, ...]]]:
    return {
        model: {version: entry.servers for version, entry in route.versions.items()}
        for model, route in made.routes.items()
    }


# --- snapshots and deltas -------------------------------------------------------------------------


def test_an_empty_table_holds_nothing() -> None:
    made = Table()
    assert made.revision == NONE
    assert not made.holds(replica("t0"))
    assert not made.outdated(replica("t0"), Revision(1, 1))


def test_a_first_snapshot_withdraws_nothing() -> None:
    made = Table()
    assert made.apply(snapshot({"m": {1: ("t0",), 2: ()}})) == set()
    assert made.revision == Revision(1, 1)
    assert made.addresses == ADDRESSES
    assert made.holds(replica("t0"))
    assert not made.holds(replica("t1"))
    assert not made.holds(replica("t0", version=2))
    assert not made.holds(replica("t0", version=3))
    assert not made.holds(replica("t0", "other"))


def test_a_delta_replaces_its_models_and_leaves_the_others() -> None:
    made = table(snapshot({"m": {1: ("t0", "t1")}, "n": {1: ("t0",)}}))
    assert made.apply(delta({"m": {1: ("t1",), 2: ("t0",)}})) == {replica("t0")}
    assert placed_in(made) == {"m": {1: ("t1",), 2: ("t0",)}, "n": {1: ("t0",)}}
    assert made.revision == Revision(1, 2)
    assert made.addresses == ADDRESSES


def test_a_snapshot_replaces_everything() -> None:
    made = table(snapshot({"m": {1: ("t0",)}, "n": {1: ("t0",), 2: ("t1",)}}))
    gone = made.apply(snapshot({"n": {2: ("t1",)}}, (1, 5), {"t1": "h:9"}))
    assert gone == {replica("t0"), replica("t0", "n")}
    assert placed_in(made) == {"n": {2: ("t1",)}}
    assert made.addresses == {"t1": "h:9"}


def test_a_removed_model_is_withdrawn_wherever_it_was() -> None:
    made = table(snapshot({"m": {1: ("t0",), 2: ("t1",)}}))
    assert made.apply(delta({}, removed="m unheard-of")) == {
        replica("t0"),
        replica("t1", version=2),
    }
    assert made.routes == {}


def test_servers_come_move_and_go_by_delta() -> None:
    made = table(snapshot({}))
    made.apply(delta({}, addresses={"t1": "h:7", "t2": "h:3"}, removed_servers="t0"))
    assert made.addresses == {"t1": "h:7", "t2": "h:3"}


def test_what_a_route_says_besides_its_servers_is_kept() -> None:
    entry = VersionRoute("digest", ("t1",), False, "pending approval")
    route = Route(2, {"stable": 1}, {1: entry}, (Arm("m", 1, 1),), False)
    made = table(snapshot({"m": {1: ("t0",)}}))
    made.apply(Change(Revision(2, 1), True, {"m": route}, ADDRESSES, frozenset({"t0"})))
    got = made.routes["m"]
    assert (got.default_version, got.aliases, got.arms, got.retry) == (
        (2, {"stable": 1}, (Arm("m", 1, 1),), False)
    )
    assert got.versions[1] == VersionRoute("digest", ("t0", "t1"), False, "pending approval")


# --- withdrawals and grants -----------------------------------------------------------------------


def test_a_grant_from_before_a_withdrawal_is_outdated() -> None:
    made = table(snapshot({"m": {1: ("t0",)}}, (1, 3)), delta({"m": {1: ()}}, (1, 5)))
    assert made.outdated(replica("t0"), Revision(1, 4))
    assert not made.outdated(replica("t0"), Revision(1, 5))
    assert not made.outdated(replica("t0"), Revision(1, 6))
    assert not made.outdated(replica("t1"), Revision(1, 4))


def test_a_grant_of_a_later_controller_is_never_outdated() -> None:
    made = table(snapshot({"m": {1: ("t0",)}}, (1, 3)), delta({"m": {1: ()}}, (1, 500)))
    assert not made.outdated(replica("t0"), Revision(2, 1))


def test_a_replica_that_is_back_counts_again() -> None:
    made = table(
        snapshot({"m": {1: ("t0",)}}, (1, 1)),
        delta({"m": {1: ()}}, (1, 2)),
        delta({"m": {1: ("t0",)}}, (1, 4)),
    )
    assert not made.outdated(replica("t0"), Revision(1, 1))
    assert made.withdrawn == {}


def test_a_replica_withdrawn_twice_is_outdated_by_the_second() -> None:
    made = table(
        snapshot({"m": {1: ("t0",)}}, (1, 1)),
        delta({"m": {1: ()}}, (1, 2)),
        delta({"m": {1: ("t0",)}}, (1, 4)),
        delta({"m": {1: ()}}, (1, 6)),
    )
    assert made.outdated(replica("t0"), Revision(1, 5))


# --- epochs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [snapshot({}, (1, 99)), delta({}, (1, 99), removed="m")])
def test_a_controller_that_does_not_act_any_more_changes_nothing(change: Change) -> None:
    made = table(snapshot({"m": {1: ("t0",)}}, (2, 1)))
    with pytest.raises(StaleEpoch, match="epoch 1 is before 2"):
        made.apply(change)
    assert made == table(snapshot({"m": {1: ("t0",)}}, (2, 1)))


def test_a_new_epoch_counts_from_anew() -> None:
    made = table(snapshot({}, (1, 99)), snapshot({"m": {1: ("t0",)}}, (2, 1)))
    assert made.revision == Revision(2, 1)
    assert made.apply(delta({"m": {1: ()}}, (2, 2))) == {replica("t0")}


# --- servers that a new Controller has not inventoried --------------------------------------------


def restarted() -> Table:
    """A Controller took over that knows of t1 and has not seen t0 yet."""
    return table(
        snapshot({"m": {1: ("t0",)}, "n": {1: ("t0", "t1")}}, (1, 9)),
        snapshot({"m": {1: ()}, "n": {1: ()}}, (2, 1), unknown="t0"),
    )


def test_an_unknown_server_keeps_what_it_held() -> None:
    made = table(snapshot({"m": {1: ("t0", "t1"), 2: ("t0",)}}, (1, 9)))
    change = snapshot({"m": {1: (), 2: ("t1",)}}, (2, 1), unknown="t0")
    assert made.apply(change) == {replica("t1")}
    assert placed_in(made) == {"m": {1: ("t0",), 2: ("t0", "t1")}}


def test_what_left_the_catalogue_leaves_an_unknown_server_too() -> None:
    made = table(snapshot({"m": {1: ("t0",), 2: ("t0",)}, "n": {1: ("t0",)}}, (1, 9)))
    gone = made.apply(snapshot({"m": {2: ()}}, (2, 1), unknown="t0"))
    assert gone == {replica("t0"), replica("t0", "n")}
    assert placed_in(made) == {"m": {2: ("t0",)}}


def test_a_delta_about_something_else_takes_nothing_from_an_unknown_server() -> None:
    made = restarted()
    assert made.apply(delta({"m": {1: ("t1",)}}, (2, 2))) == set()
    assert placed_in(made)["m"] == {1: ("t0", "t1")}


def test_an_inventory_replaces_what_was_kept_for_the_server() -> None:
    """The Controller tells only of models that it found; the rest is not there."""
    made = restarted()
    change = delta({"n": {1: ("t0",)}}, (2, 2), addresses={"t0": "h:1"})
    assert made.apply(change) == {replica("t0", "m")}
    assert placed_in(made) == {"m": {1: ()}, "n": {1: ("t0",)}}
    assert made.outdated(replica("t0", "m"), Revision(2, 1))


def test_a_server_that_stays_unknown_keeps_its_models_through_other_inventories() -> None:
    made = table(
        snapshot({"m": {1: ("t0", "t1")}}, (1, 9)),
        snapshot({"m": {1: ()}}, (2, 1), unknown="t0 t1"),
    )
    assert made.apply(delta({}, (2, 2), addresses={"t1": "h:2"})) == {replica("t1")}
    assert placed_in(made) == {"m": {1: ("t0",)}}


def test_an_unknown_server_that_is_taken_out_keeps_nothing() -> None:
    made = restarted()
    gone = made.apply(delta({}, (2, 2), removed_servers="t0"))
    assert gone == {replica("t0", "m"), replica("t0", "n")}


# --- over all histories ---------------------------------------------------------------------------

SERVERS = ("t0", "t1")
placements = st.dictionaries(
    st.sampled_from("mno"),
    st.dictionaries(
        st.integers(1, 2), st.lists(st.sampled_from(SERVERS), unique=True).map(sorted).map(tuple)
    ),
)
unknowns = st.sampled_from(["", "", "t0", "t0 t1"])


@st.composite
def histories(draw: st.DrawFn) -> list[Change]:
    changes, epoch = [], 0
    for number in range(1, draw(st.integers(1, 8))):
        if draw(st.booleans()) or not epoch:
            epoch += 1
            change = snapshot(draw(placements), (epoch, number), unknown=draw(unknowns))
        else:
            found = draw(st.sets(st.sampled_from(SERVERS)))
            change = delta(
                draw(placements),
                (epoch, number),
                addresses={server: ADDRESSES[server] for server in found},
                removed=" ".join(draw(st.sets(st.sampled_from("mno")))),
            )
        changes.append(change)
    return changes


@given(histories())
def test_what_is_withdrawn_is_what_was_held_and_is_not(changes: list[Change]) -> None:
    made = Table()
    everything = [
        replica(server, model, version)
        for server in SERVERS
        for model in "mno"
        for version in (1, 2)
    ]
    for change in changes:
        before = {one for one in everything if made.holds(one)}
        withdrawn = made.apply(change)
        after = {one for one in everything if made.holds(one)}
        assert withdrawn == before - after
        old = Revision(change.revision.epoch, change.revision.number - 1)
        assert all(made.outdated(one, old) for one in withdrawn)
        assert not any(made.outdated(one, old) for one in after)
        assert not any(made.outdated(one, change.revision) for one in everything)
        assert sorted(one for found in made.ready.values() for one in found) == sorted(after)
        assert all(one.target == target for target, found in made.ready.items() for one in found)
        assert all(made.ready.values())


def told(change: Change, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Change:
    """With what is decoupled."""
    said = st.sampled_from([False, False, False, True, None])
    found = {
        model: Route(
            versions={
                version: replace(entry, decoupled=draw(said))
                for version, entry in route.versions.items()
            }
        )
        for model, route in change.routes.items()
    }
    return replace(change, routes=found)


@given(histories(), st.data())
def test_what_may_give_several_replies_is_counted_as_it_comes_and_goes(
    changes: list[Change], data: st.DataObject
) -> None:
    made = Table()
    assert not made.none_decoupled, "nothing is known yet"
    for change in changes:
        unregistered = data.draw(st.booleans())
        made.apply(replace(told(change, data.draw), unregistered=unregistered))
        found = [
            entry.decoupled for route in made.routes.values() for entry in route.versions.values()
        ]
        assert made.maybe_decoupled == len(found) - found.count(False)
        one_each = bool(made.routes) and set(found) <= {False}
        assert made.none_decoupled == (one_each and not unregistered)


def directed(change: Change, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Change:
    """With defaults, aliases, policies and retries."""
    models, numbers = st.sampled_from("mno"), st.integers(0, 2)
    arms = st.lists(st.builds(Arm, models, numbers, st.integers(1, 3)), max_size=2).map(tuple)
    found = {
        model: replace(
            route,
            default_version=draw(numbers),
            aliases=draw(st.dictionaries(st.just("stable"), numbers)),
            arms=draw(arms),
            retry=draw(st.booleans()),
        )
        for model, route in change.routes.items()
    }
    return replace(change, routes=found)


@given(histories(), st.data())
def test_what_a_request_means_is_what_the_routes_say_now(
    changes: list[Change], data: st.DataObject
) -> None:
    made = Table()
    asked = [(model, version) for model in "mno" for version in ("", "1", "2", "stable")]
    for change in changes:
        made.apply(directed(change, data.draw))
        for model, version in data.draw(st.permutations(2 * asked)):
            draw = data.draw(st.floats(0, 1, exclude_max=True))
            try:
                wanted = resolve(made.routes, model, version, draw)
            except ShoalError as refused:
                with pytest.raises(type(refused)):
                    made.resolve(model, version, draw)
                continue
            way = made.resolve(model, version, draw)
            assert way.target == wanted
            assert way.retry == made.routes[wanted.model].retry
            assert way.renamed == (wanted.model != model)
            said = head(text_field(1, model) + text_field(2, version) + way.suffix)
            assert (said.model, said.version) == (wanted.model, str(wanted.version))


@given(histories(), placements)
def test_a_snapshot_without_unknown_servers_forgets_all_history(
    changes: list[Change], last: Placed
) -> None:
    made = table(*changes)
    made.apply(snapshot(last, (100, 1)))
    assert made.routes == routes(last)
    assert made.unknown == frozenset()
