"""Whether a load could begin on a server now. Nothing leaves for one that could not: until then the
room of its victims would stay empty."""

from services.controller.core.entities import ReplicaKey, UnitSpec
from services.controller.core.fleet import Fleet


def none_free(fleet: Fleet, server: str) -> str | None:
    """Return why no load could begin on `server`, or None where one could."""
    account, limits = fleet.accounts[server], fleet.limits
    if account.busy >= limits.loads_per_server:
        return f"{server} is busy with other loads"
    if account.busy and not all(map(fleet.known.size_known, account.coming)):
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
