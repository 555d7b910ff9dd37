"""The questions that the shell asks of the engine's state.

Asking changes nothing. A container in an answer may be the engine's own: read it, and do not keep
it beyond the next event.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from services.controller.core import explain
from services.controller.core.entities import Health, Replica, ReplicaKey, Server, Unit, Use
from services.controller.core.fleet import Fleet
from services.controller.core.memory import Memory
from services.controller.core.placement import shortage
from services.controller.core.waiting import Want


class Predictions(NamedTuple):
    """The number of loads begun ahead of their expected use, and of those used in time."""

    made: int
    hit: int


class FleetView:
    """A view of the fleet that cannot change it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    # --- servers ----------------------------------------------------------------------------------

    @property
    def servers(self) -> Mapping[str, Server]:
        """The servers by id."""
        return self._fleet.servers

    def health(self, server: str) -> Health:
        return self._fleet.servers[server].health

    def reserved(self, server: str) -> Memory:
        """Return the bytes, by resource, that are reserved for what the server holds.

        May be called from any thread.
        """
        return self._fleet.accounts[server].occupied

    def occupied_slots(self, server: str) -> int:
        """Return how many units count against the server's `max_models`.

        May be called from any thread.
        """
        return self._fleet.accounts[server].occupied_slots

    # --- replicas ---------------------------------------------------------------------------------

    def replica(self, key: ReplicaKey) -> Replica | None:
        return self._fleet.replica(key)

    def replicas(self) -> Iterator[Replica]:
        """Yield every replica of the fleet. May be called from any thread."""
        for here in list(self._fleet.replicas.values()):
            yield from list(here.values())

    def replicas_on(self, server: str) -> list[Replica]:
        return list(self._fleet.replicas[server].values())

    def holds_any(self, server: str) -> bool:
        """Return whether the server has any replica, in whatever state."""
        return bool(self._fleet.replicas[server])

    def replicas_of(self, unit: Unit) -> Iterator[Replica]:
        """Yield the unit's replicas, in the order of their servers."""
        return self._fleet.everywhere(unit)

    def ready(self, unit: Unit) -> list[Replica]:
        """Return the unit's replicas that answer, in the order of their servers."""
        return self._fleet.ready(unit)

    def is_resident(self, unit: Unit) -> bool:
        """Return whether the unit has a replica, in whatever state."""
        return unit in self._fleet.where

    def has_strangers(self) -> bool:
        """Return whether any server holds a unit that is not in the catalogue."""
        return bool(self._fleet.strangers)

    def use(self, key: ReplicaKey) -> Use:
        return self._fleet.use(key)

    def holders(self, key: ReplicaKey) -> set[Unit]:
        """Return what is on the same server and needs the replica there."""
        return self._fleet.holders(key.unit, key.server)

    # --- units ------------------------------------------------------------------------------------

    def is_loadable(self, unit: Unit) -> bool:
        """Return whether the unit is in the catalogue, neither rejected nor invalid."""
        return unit in self._fleet.known.specs

    def units_of(self, model: str) -> list[Unit]:
        """Return the model's units that may be loaded, the lowest version first."""
        return sorted(self._fleet.known.versions.get(model, ()))

    def parts_of(self, unit: Unit) -> tuple[Unit, ...]:
        """Return the units that must be READY beside this one, which is made of them."""
        spec = self._fleet.known.specs.get(unit)
        return spec.requires if spec is not None else ()

    def could_require(self, unit: Unit, part: Unit) -> bool:
        """Return whether some server has room for `part` beside the unit and all that it needs."""
        specs, known = self._fleet.known.specs, self._fleet.known
        if unit not in specs or part not in specs:
            return False
        both = (*known.group(specs[part]), *known.group(specs[unit]))
        members = tuple({member.unit: member for member in both}.values())
        return any(
            shortage(self._fleet, members, server) is None
            for server in self._fleet.servers.values()
        )

    def is_pinned(self, unit: Unit) -> bool:
        return unit in self._fleet.known.pinned

    def is_wanted(self, unit: Unit) -> bool:
        """Return whether the unit is to be loaded, or is being loaded."""
        return unit in self._fleet.wants.by_unit

    def failure(self, unit: Unit, now: float) -> str:
        """Return why the unit cannot be counted on, in words: it, or what it requires, has failed
        to load and has not loaded since, or is set aside. Empty if there is no such reason."""
        spec = self._fleet.known.specs.get(unit)
        members = [member.unit for member in self._fleet.known.group(spec)] if spec else [unit]
        for member in members:
            failure = self._fleet.failures.by_unit.get(member)
            if failure is not None and (failure.until > now or not failure.set_aside):
                return f"load failed: {'' if member == unit else f'{member}: '}{failure.cause}"
        return ""

    def status(self, unit: Unit) -> str:
        """Return why the unit is not READY anywhere, in words; empty when it is."""
        return self._fleet.status(unit)

    # --- Routers ----------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The revision of the placement table."""
        return self._fleet.revision

    def follows(self, router: str) -> bool:
        """Return whether the Router has been heard from recently enough to count."""
        return router in self._fleet.withdrawals.routers

    def followers(self, now: float) -> frozenset[str] | None:
        """Return the Routers that a successor would have to wait for before it unloads anything.

        None while not all of them are known.
        """
        return self._fleet.withdrawals.followers(now)

    # --- counts, from any thread ------------------------------------------------------------------

    def waiters(self) -> int:
        """Return how many callers wait for a load."""
        return sum(map(len, list(self._fleet.wants.waiting.values())))

    def wants(self) -> list[Want]:
        """Return what is to be loaded, or is being loaded."""
        return list(self._fleet.wants.by_unit.values())

    def failures(self) -> int:
        """Return how many units failed to load and are not tried again yet."""
        return len(self._fleet.failures.by_unit)

    def predictions(self) -> Predictions:
        return Predictions(self._fleet.habits.predictions, self._fleet.habits.predictions_hit)

    # --- explanations -----------------------------------------------------------------------------

    def why_resident(self, unit: Unit, now: float) -> tuple[explain.Stay, ...]:
        """Explain each replica of the unit; empty where there is none."""
        return explain.why_resident(self._fleet, unit, now)

    def why_not_loaded(self, unit: Unit, now: float) -> explain.Absence:
        """Explain why the unit is not READY, or not on more servers.

        Raises ModelNotFound, VersionNotFound.
        """
        return explain.why_not_loaded(self._fleet, unit, now)
