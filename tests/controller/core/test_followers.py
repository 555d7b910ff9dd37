"""Who a Controller waits for before it unloads, over any history of Controllers and Routers."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.controller.core.agenda import Agenda
from services.controller.core.followers import NamedRouters, Names
from services.controller.core.limits import Limits
from services.controller.core.withdrawals import Withdrawals
from services.registry.core.lease import Lease, held

TTL = 4.0  # seconds
CALL_SECONDS = 1.0
LIMITS = Limits(router_seconds=2.0)
ROUTERS = ("r0", "r1", "r2")
routers = st.sampled_from(ROUTERS)


def test_a_router_waits_until_a_call_that_named_it_was_answered() -> None:
    named = NamedRouters(5.0)
    named.inherit(frozenset({"r0"}))
    assert named.wait("r0", 0.0) == 0
    assert named.wait("r1", 0.0) == 5
    named.calling({"r0", "r1"})
    assert named.wait("r1", 1.0) == 4
    named.answered({"r0", "r1"})
    assert named.wait("r1", 1.0) == 0


def test_a_call_without_a_router_begins_its_wait_again() -> None:
    named = NamedRouters(5.0)
    named.inherit(frozenset())
    assert named.wait("r1", 0.0) == 5
    named.calling(frozenset())
    assert named.wait("r1", 3.0) == 5


def test_where_no_names_are_kept_nobody_waits() -> None:
    named = NamedRouters(5.0)
    named.inherit(None)
    assert named.wait("r1", 0.0) == 0
    named.calling({"r2"})
    assert named.wait("r1", 0.0) == 5, "it may have arrived"
    named.answered(None)
    assert named.wait("r1", 0.0) == 0


@dataclass
class Controller:
    """One process that acts."""

    incarnation: str
    withdrawals: Withdrawals
    named: NamedRouters
    #: The Routers that have joined it and wait for its table.
    waiting: set[str] = field(default_factory=set)
    #: The call to the Registry under way: what it names, and when it began.
    call: tuple[Names, float] | None = None


class Succession(RuleBasedStateMachine):
    """Controllers are killed, calls to the Registry and their answers are lost, Routers come and
    go: what may send to a replica is waited for by whoever acts, until it has lost its lease."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.lease = Lease()
        self.incarnations = 0
        #: The Routers that have had a table, and have not been silent for longer than their lease.
        self.sending: set[str] = set()
        self.succeed()

    @rule()
    def succeed(self) -> None:
        """The Controller is killed, and another one is started."""
        self.incarnations += 1
        incarnation = str(self.incarnations)
        self.hold(incarnation, None)
        named = NamedRouters(TTL + CALL_SECONDS)
        known = self.lease.followers
        named.inherit(None if known is None else frozenset(known))
        unload_from = self.now + LIMITS.router_seconds
        withdrawals = Withdrawals(LIMITS, Agenda(), unload_from, named.inherited)
        self.acting = Controller(incarnation, withdrawals, named)

    def hold(self, incarnation: str, names: Names) -> None:
        followers = None if names is None else tuple(names)
        now, ttl = (round(seconds * 1e6) for seconds in (self.now, TTL))
        self.lease = held(self.lease, "c", incarnation, ttl, now, followers)

    @precondition(lambda self: self.acting.call is None)
    @rule()
    def call(self) -> None:
        names = self.acting.withdrawals.followers(self.now)
        self.acting.named.calling(names)
        self.acting.call = names, self.now

    @precondition(lambda self: self.acting.call is not None)
    @rule(arrives=st.booleans(), answered=st.booleans())
    def end_call(self, arrives: bool, answered: bool) -> None:
        assert self.acting.call is not None
        (names, _), self.acting.call = self.acting.call, None
        if arrives:
            self.hold(self.acting.incarnation, names)
        if arrives and answered:
            self.acting.named.answered(names)
        self.hand_out()

    @rule(router=routers)
    def join(self, router: str) -> None:
        if router in self.acting.withdrawals.routers:
            self.acting.withdrawals.leave(router)
        self.acting.withdrawals.join(router, self.now)
        self.acting.waiting.add(router)
        self.hand_out()

    def hand_out(self) -> None:
        """Give their tables to those who may have them."""
        for router in sorted(self.acting.waiting & self.acting.withdrawals.routers.keys()):
            if self.acting.named.wait(router, self.now) == 0:
                self.acting.waiting.discard(router)
                self.sending.add(router)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.5]), silent=st.sets(routers))
    def pass_time(self, seconds: float, silent: set[str]) -> None:
        self.now += seconds
        if self.acting.call is not None and self.now >= self.acting.call[1] + CALL_SECONDS:
            self.acting.call = None
        for router in self.acting.withdrawals.routers.keys() - silent:
            self.acting.withdrawals.heard(router, self.now)
        for router, _ in self.acting.withdrawals.silent(self.now):
            self.acting.withdrawals.leave(router)
            self.sending.discard(router)
        if self.now >= self.acting.withdrawals.unload_from:
            self.sending &= self.acting.withdrawals.routers.keys()
        self.hand_out()

    @invariant()
    def whoever_sends_is_waited_for(self) -> None:
        if self.incarnations and self.acting.withdrawals.all_back(self.now):
            assert self.sending <= self.acting.withdrawals.routers.keys()


def test_any_succession() -> None:
    run_state_machine_as_test(Succession, settings=settings(max_examples=200, deadline=None))
