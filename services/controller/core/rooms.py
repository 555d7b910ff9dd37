"""The room on a server that newcomers would have, as replicas are counted out."""

from services.controller.core import memory
from services.controller.core.curves import SLOTS
from services.controller.core.entities import Replica, Unit, UnitSpec
from services.controller.core.fleet import Fleet
from services.controller.core.memory import NOTHING, Memory
from services.controller.core.sizing import reservation


class Room:
    """A count of whether a server has room for the newcomers, as replicas are counted out."""

    def __init__(
        self, fleet: Fleet, server: str, wanted: set[Unit], missing: tuple[UnitSpec, ...]
    ) -> None:
        self._server = fleet.servers[server]
        self._here = fleet.replicas[server]
        self._slots = sum(member.slots for member in missing)
        account = fleet.accounts[server]
        self._need = need_of(fleet, server, wanted, missing)
        staying, need = account.staying, self._need
        self._over = {
            name: staying.get(name, 0) + need.get(name, 0) - limit
            for name, limit in self._server.budget.items()
        }
        most = self._server.max_models
        self._slots_over = account.staying_slots + self._slots - most if most else 0

    def enough(self) -> bool:
        if self._slots_over > 0:
            return False
        for over in self._over.values():  # noqa: SIM110  all() takes twice as long
            if over > 0:
                return False
        return True

    def free(self, unit: Unit) -> None:
        self._count(unit, -1)

    def keep(self, unit: Unit) -> None:
        self._count(unit, 1)

    def _count(self, unit: Unit, sign: int) -> None:
        replica = self._here[unit]
        for name in self._over:
            self._over[name] += sign * replica.reserved.get(name, 0)
        if self._server.max_models:
            self._slots_over += sign * replica.slots

    def fits_beside(self, staying: list[Replica]) -> bool:
        """Return whether the newcomers fit beside `staying` alone."""
        taken = memory.plus(memory.total(replica.reserved for replica in staying), self._need)
        slots = sum(replica.slots for replica in staying) + self._slots
        most = self._server.max_models
        return memory.fits(taken, self._server.budget) and not 0 < most < slots


def too_full(fleet: Fleet, server: str, least: Memory) -> bool:
    """Return whether a server obviously has no room for a newcomer that takes `least`. Only a quick
    look: where it does not say so, there may be none all the same."""
    staying = fleet.accounts[server].staying
    for name, limit in fleet.servers[server].budget.items():
        if staying.get(name, 0) + least.get(name, 0) > limit:
            return True
    return False


def least(fleet: Fleet, members: tuple[UnitSpec, ...]) -> Memory:
    """The bytes and the slots that a newcomer takes at least, on any server: nothing where some of
    it may be there already, or is of unknown size."""
    if len(members) > 1 or not members[0].size_known:
        return NOTHING
    return {**reservation(members[0], NOTHING, fleet.limits), SLOTS: members[0].slots}


def need_of(fleet: Fleet, server: str, wanted: set[Unit], missing: tuple[UnitSpec, ...]) -> Memory:
    """Bytes that `missing` needs together. Where guesses add up to more than there is beside what
    `wanted` has there already, they are cut: the parts load one by one, and are measured."""
    budget, limits = fleet.servers[server].budget, fleet.limits
    if len(missing) == 1 and missing[0].size_known:
        return reservation(missing[0], budget, limits)
    total = memory.total([reservation(member, budget, limits) for member in missing])
    if all(member.size_known for member in missing):
        return total
    sure = memory.total(
        reservation(member, budget, limits) for member in missing if member.size_known
    )
    here = fleet.replicas[server]
    there = memory.total(here[unit].reserved for unit in wanted if unit in here)
    most = {name: limit - there.get(name, 0) for name, limit in budget.items()}
    cut = {name: min(amount, most.get(name, amount)) for name, amount in total.items()}
    return memory.highest(cut, sure)
