"""Servers with replicas on them, written down as they are, and what is decided for a newcomer."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from hypothesis import strategies as st

from services.controller.core import placement, reconcile
from services.controller.core.entities import (
    Health,
    Replica,
    ReplicaKey,
    Server,
    Unit,
    UnitSpec,
    Use,
)
from services.controller.core.fleet import Fleet
from services.controller.core.limits import Limits
from services.controller.core.placement import Place, place
from services.controller.core.states import State
from services.controller.core.victims import Terms
from tests.support.residency_world import unit

LIMITS = Limits(loads_per_server=9, loads_per_host=9)  # what leaves, however busy a server is
NOW = 1000.0
LEASED = "about to be used"
SEQUENCE = "in use by a sequence"
PINNED = "pinned"
KEPT = "its minimum of copies"
LEAVING = (State.DRAINING, State.UNLOADING)


def spec(name: str, ram: int = 0, *parts: str, **more: Any) -> UnitSpec:
    """`ram`: declared bytes, 0 for unknown. With parts it is an ensemble."""
    return UnitSpec(
        unit(name),
        **{
            "config_digest": "d",
            "declared": {"ram": ram} if ram else {},
            "requires": tuple(map(unit, parts)),
            "ensemble": bool(parts),
            **more,
        },
    )


def known(*specs: UnitSpec) -> dict[Unit, UnitSpec]:
    return {each.unit: each for each in specs}


def server(ram: int | None = None, models: int = 0, **more: Any) -> Server:
    """Healthy, with `ram` bytes (None: no budget) and room for `models` (0: any number)."""
    budget = {} if ram is None else {"ram": ram}
    return Server(more.pop("id", "t0"), "h:1", budget, models, **{"health": Health.HEALTHY, **more})


@dataclass(frozen=True)
class There:
    """A unit on a server, and when it was used last."""

    spec: UnitSpec
    used: float
    state: State = State.READY


@dataclass(frozen=True)
class View:
    """A server, what is on it, and why some of that may not be evicted, by model."""

    server: Server
    there: tuple[There, ...]
    protected: Mapping[str, str]

    @property
    def last_used(self) -> dict[Unit, float]:
        return {each.spec.unit: each.used for each in self.there}


def view(on: Server, *there: There, protected: Mapping[str, str] | None = None) -> View:
    return View(on, there, protected or {})


def fleet_of(
    views: Iterable[View], specs: Iterable[UnitSpec] = (), limits: Limits = LIMITS
) -> Fleet:
    fleet = Fleet(limits, NOW, 0.0)
    for each in specs:
        reconcile.put_spec(fleet, each, NOW)
    for one in views:
        fleet.add_server(one.server)
        for there in one.there:
            put(fleet, ReplicaKey(one.server.id, there.spec.unit), there, one.protected)
    return fleet


def put(fleet: Fleet, key: ReplicaKey, there: There, protected: Mapping[str, str]) -> None:
    why = protected.get(key.unit.model)
    if key.unit not in fleet.known.specs or why in (PINNED, KEPT):
        kept = int(why == KEPT)
        reconcile.put_spec(fleet, replace(there.spec, pinned=why == PINNED, min_copies=kept), NOW)
    replica = Replica(
        key,
        there.state,
        there.spec.declared,
        0.0,
        "",
        slots=there.spec.slots,
        digest=there.spec.digest,
    )
    rank = fleet.uses.rank(
        there.used, 1.0, fleet.known.reload_seconds(key.unit), fleet.uses.share(replica), 0.0
    )
    fleet.uses.on[key.server][key.unit] = Use(there.used, 1.0, rank, 0, int(why == SEQUENCE))
    fleet.put(replica)
    if why == LEASED:
        fleet.withdrawals.use_leases[key] = {"l"}


def decide(
    wanted: UnitSpec,
    *views: View,
    more: Iterable[UnitSpec] = (),
    terms: Terms = Terms(),  # noqa: B008 (frozen)
    limits: Limits = LIMITS,
) -> placement.Decision:
    return place(fleet_of(views, (wanted, *more), limits), wanted, terms, NOW)


def placed(decision: placement.Decision) -> Place:
    assert isinstance(decision, Place), decision
    return decision


def victims(decision: placement.Decision) -> list[str]:
    return [each.model for each in placed(decision).victims]


A, B, C = spec("a", 10), spec("b", 10), spec("c", 10)


NAMES = "abcdef"
states = st.sampled_from([State.READY] * 6 + [State.QUEUED, State.LOADING, *LEAVING])
amounts = st.sampled_from([10, 20, 30, 50])
protections = st.sampled_from([None] * 6 + [LEASED, SEQUENCE, PINNED, KEPT])


@st.composite
def crowded(draw: st.DrawFn, *, ensembles: bool) -> "Case":
    """A newcomer that an empty server would hold, a server, and the specs of what is on it."""
    specs: list[UnitSpec] = []
    for name in NAMES[: draw(st.integers(1, len(NAMES)))]:
        parts = draw(st.sets(st.sampled_from([s.unit.model for s in specs]))) if specs else ()
        if ensembles and parts and draw(st.booleans()):
            specs.append(spec(name, 0, *sorted(parts)))
        else:
            specs.append(spec(name, draw(amounts)))
    budget = draw(st.integers(2, 20)) * 10
    replicas = [There(each, draw(st.integers(0, 5)), draw(states)) for each in specs]
    protected = {each.unit.model: draw(protections) for each in specs}
    on = server(budget, draw(st.sampled_from([0, 0, 1, 2, 3])))
    here = view(on, *replicas, protected={name: why for name, why in protected.items() if why})
    return spec("newcomer", draw(st.integers(1, budget // 10)) * 10), here, specs


def enough(gone: Iterable[Unit], newcomer: UnitSpec, here: View, specs: Any) -> bool:
    stay = [
        each.spec
        for each in here.there
        if each.spec.unit not in set(gone) and each.state not in LEAVING
    ]
    room = here.server.max_models or len(NAMES) + 1
    return (
        sum(each.declared.get("ram", 0) for each in stay) + newcomer.declared["ram"]
        <= here.server.budget["ram"]
    ) and sum(each.slots for each in stay) + 1 <= room


def every_choice(here: View, specs: Any) -> Iterator[frozenset[Unit]]:
    """All sets that may leave: READY, not protected, and with all that needs them."""
    free = [
        each.spec.unit
        for each in here.there
        if each.state is State.READY and each.spec.unit.model not in here.protected
    ]
    for size in range(len(free) + 1):
        for chosen in map(frozenset, combinations(free, size)):
            if not any(
                chosen.intersection(other.spec.requires)
                for other in here.there
                if other.spec.unit not in chosen
            ):
                yield chosen


Case = tuple[UnitSpec, View, list[UnitSpec]]
