"""Which requests the lane answers, and why the Router answers the others."""

from dataclasses import replace
from typing import Any

import pytest

from services.router.core.routing.lane import (
    LaneRules,
    Place,
    held_by,
    held_over_grpc,
    place,
    places,
)
from services.router.core.routing.routes import Arm, Route, Target, VersionRoute
from services.router.core.routing.table import Revision, Table

OPEN = LaneRules()
PLAIN = VersionRoute("digest", ("t1", "t0"), decoupled=False)


def route(**more: Any) -> Route:
    return Route(default_version=2, versions={1: PLAIN, 2: PLAIN}, **more)


def table(**routes: Route) -> Table:
    addresses = {"t0": "127.0.0.1:1", "t1": "127.0.0.1:2"}
    return Table(Revision(1, 1), dict(routes), addresses)


def reason(model: Route, version: str = "", rules: LaneRules = OPEN) -> str:
    found = place(table(m=model), "m", version, rules)
    assert isinstance(found, str)
    return found


def test_a_resident_version_is_answered_by_its_servers() -> None:
    both = ("t0", "t1")
    assert place(table(m=route()), "m", "1", OPEN) == Place(Target("m", 1), both)


@pytest.mark.parametrize("version", ["", "best"])
def test_a_version_that_is_not_named_by_number_is_the_registrys_choice(version: str) -> None:
    found = place(table(m=route(aliases={"best": 2})), "m", version, OPEN)
    assert found == Place(Target("m", 2), ("t0", "t1"))


@pytest.mark.parametrize(
    ("model", "version", "rules", "words"),
    [
        (route(), "", LaneRules(closed="it is closed"), "it is closed"),
        (route(), "", LaneRules(limited=("m",)), "limits its requests in flight"),
        (route(), "1", LaneRules(limited=("*",)), "limits its requests in flight"),
        (route(retry=False), "", OPEN, "must never be repeated"),
        (route(arms=(Arm("m", 1, 1), Arm("m", 2, 1))), "", OPEN, "draws the version"),
        (route(arms=(Arm("m", 1, 1),)), "", OPEN, "draws the version"),
        (route(), "3", OPEN, "version 3"),
        (route(), "01", OPEN, "'01'"),
        (route(), "worst", OPEN, "'worst'"),
    ],
)
def test_the_router_answers_what_it_alone_can(
    model: Route, version: str, rules: LaneRules, words: str
) -> None:
    assert words in reason(model, version, rules)


@pytest.mark.parametrize("decoupled", [True, None])
def test_the_router_answers_for_what_may_reply_several_times(decoupled: bool | None) -> None:
    entry = replace(PLAIN, decoupled=decoupled)
    assert "several times" in reason(Route(default_version=1, versions={1: entry}))


def test_an_arm_that_is_asked_for_by_number_is_answered_by_the_lane() -> None:
    model = route(arms=(Arm("m", 1, 1), Arm("m", 2, 1)))
    assert isinstance(place(table(m=model), "m", "1", OPEN), Place)


@pytest.mark.parametrize("servers", [(), ("t9",)])
def test_the_router_answers_for_what_is_not_resident(servers: tuple[str, ...]) -> None:
    entry = replace(PLAIN, servers=servers)
    assert reason(Route(default_version=1, versions={1: entry})) == "m:1 is not resident"


def test_the_router_answers_for_unknown_models() -> None:
    assert "unknown model" in str(place(table(), "m", "", OPEN))
    assert "is not allowed" in str(place(table(), "a/b", "", OPEN))


def test_the_places_are_all_that_place_gives() -> None:
    absent = replace(PLAIN, servers=())
    known = table(
        m=Route(default_version=1, aliases={"best": 1, "next": 2}, versions={1: PLAIN, 2: absent}),
        cold=Route(default_version=1, versions={1: absent}),
        drawn=route(arms=(Arm("m", 1, 1),)),
    )
    found = {(model, version) for model, version, _ in places(known, known.routes, OPEN)}
    assert found == {("m", ""), ("m", "best"), ("m", "1"), ("drawn", "1"), ("drawn", "2")}
    for model, version, one in places(known, [*known.routes, "unknown"], OPEN):
        assert one == place(known, model, version, OPEN)
    assert not list(places(known, known.routes, LaneRules(closed="it is closed")))


def test_servers_that_a_cancellation_can_end_get_nothing_over_grpc() -> None:
    found = Place(Target("m", 1), ("t0", "t1"))
    assert held_over_grpc(found, {"t0", "t1", "t2"}, OPEN) == ""
    assert "could end t1, as any Triton before release 25.06" in held_over_grpc(found, {"t0"}, OPEN)
    assert held_over_grpc(found, (), LaneRules(any_release=True)) == ""


def test_a_requests_own_wishes_leave_it_to_the_router() -> None:
    assert held_by({}, "") == ""
    assert held_by({"x-request-id": "1", "authorization": "a"}, "") == ""
    assert held_by({"x-shoal-priority": "high"}, "") == "it has the header x-shoal-priority"
    assert held_by({"x-shoal-of-tomorrow": ""}, "") == "it has the header x-shoal-of-tomorrow"
    assert held_by({}, "7") == "it is part of a sequence"
