"""Whether a load could begin on a server now. Nothing leaves for one that could not: until then the
room of its victims would stay empty.

Loads are bounded so that they do not disturb each other, and one of unknown size begins alone. A
load that hangs would keep all others waiting by that, so one that is overdue counts no longer. Its
memory does: what was reserved for it stays reserved until it has ended, and more if the server is
seen to take more. So the budget holds whatever begins beside it.
"""

from typing import Final

from services.controller.core.entities import Replica, ReplicaKey, Unit, UnitSpec
from services.controller.core.fleet import Fleet
from services.controller.core.states import State

SLOW: Final = 4  # times as long as a load is known to take, and it is overdue


def none_free(fleet: Fleet, server: str) -> str | None:
    """Return why no load could begin on `server`, or None where one could."""
    account, limits = fleet.accounts[server], fleet.limits
    if account.busy >= limits.loads_per_server:
        return f"{server} is busy with other loads"
    if account.busy and unknown_size(fleet, server) is not None:
        return f"{server} is busy with a load of unknown size"
    if busy(fleet, server) >= limits.loads_per_host:
        return f"the host of {server} is busy with other loads"
    return None


def none_for(fleet: Fleet, server: str, units: tuple[UnitSpec, ...]) -> str | None:
    """Return why no load of `units` could begin on `server`, or None where one could."""
    full = none_free(fleet, server)
    if full is not None:
        return full
    if fleet.accounts[server].busy and not all(spec.size_known for spec in units):
        return f"{server} is busy with another load, and what is of unknown size loads alone"
    if any(fleet.changing(ReplicaKey(server, spec.unit)) for spec in units):
        return f"{server} is busy with another change to the same model"
    return None


def busy(fleet: Fleet, server: str) -> int:
    """Loads under way or queued on the server's host."""
    neighbours = fleet.neighbours(server)
    if len(neighbours) == 1:
        return fleet.accounts[server].busy
    return sum(fleet.accounts[neighbour].busy for neighbour in neighbours)


def unknown_size(fleet: Fleet, server: str) -> Unit | None:
    """Return a unit of unknown size that is being loaded on the server, or is to be; None where
    there is none. Those that are overdue do not count."""
    here = fleet.replicas[server]
    for unit in fleet.accounts[server].coming:
        if not here[unit].overdue and not fleet.known.size_known(unit):
            return unit
    return None


def patience(fleet: Fleet, replica: Replica) -> float:
    """Return after how many seconds the load of `replica` is overdue. It grows with the number of
    loads that are overdue on the server already: where all of them are slow, it is the server that
    is, and more loads at a time would make it slower."""
    known = fleet.known.specs.get(replica.unit)
    expected = (known.load_seconds if known is not None else None) or 0.0
    seconds = max(fleet.limits.slow_load_seconds, SLOW * expected)
    return seconds * (1 + fleet.accounts[replica.key.server].overdue)


def expect(fleet: Fleet, replica: Replica) -> None:
    """Have a load that has begun looked at when it is overdue."""
    due = replica.since + patience(fleet, replica)
    fleet.agenda.look_at_load(due, replica.attempt, replica.key)


def note_overdue(fleet: Fleet, now: float) -> None:
    """Let others load beside what takes far longer than expected."""
    for attempt, key in fleet.agenda.take_loads(now):
        replica = fleet.at(key, attempt, State.LOADING)
        if replica is None:
            continue
        if now < replica.since + patience(fleet, replica):
            expect(fleet, replica)
            continue
        reason = f"loading for {now - replica.since:.0f} s, far longer than expected"
        fleet.amend(replica, overdue=True, reason=reason)
        fleet.look_at_host(key.server)
