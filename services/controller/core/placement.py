"""Where a unit goes: filter, then score in [0, 1], then pick."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from services.controller.core import memory, victims
from services.controller.core.entities import Health, Limits, Server, Unit, UnitSpec, reservation
from services.controller.core.residents import ServerView, Specs, group, reserved
from services.controller.core.states import State
from services.controller.core.victims import Blocked, Wait


@dataclass(frozen=True, slots=True)
class Place:
    """Put `units` (parts first) on `server`, after `victims` (ensembles first) are gone."""

    server: str
    units: tuple[UnitSpec, ...]
    victims: tuple[Unit, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Never:
    """No server could hold it even if it were empty."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoServer:
    """No healthy server."""

    reason: str


Decision = Place | Wait | Blocked | Never | NoServer


def place(
    spec: UnitSpec, views: Iterable[ServerView], specs: Specs, limits: Limits, now: float
) -> Decision:
    """Decide for one unit over all servers."""
    members = group(spec, specs)
    listed = list(views)
    healthy = [view for view in listed if view.server.health is Health.HEALTHY]
    possible = [view for view in listed if _shortage(members, view.server, limits) is None]
    if listed and not possible:
        return Never(
            "; ".join(
                sorted(
                    {
                        shortage
                        for view in listed
                        if (shortage := _shortage(members, view.server, limits)) is not None
                    }
                )
            )
        )
    if not healthy:
        return NoServer(
            ", ".join(
                f"{view.server.id} is {view.server.reason or view.server.health.value}"
                for view in listed
            )
            or "no server is configured"
        )
    outcomes = [
        _on_server(members, view, specs, limits)
        for view in possible
        if view.server.health is Health.HEALTHY
    ]
    placed = [
        (outcome, view)
        for outcome, view in zip(
            outcomes, (v for v in possible if v.server.health is Health.HEALTHY), strict=True
        )
        if isinstance(outcome, Place)
    ]
    if placed:
        best, _ = max(
            placed,
            key=lambda pair: (score(pair[0], pair[1], limits, now), pair[1].server.id),
        )
        return best
    waiting = [outcome for outcome in outcomes if isinstance(outcome, Wait)]
    if waiting:
        return waiting[0]
    blocked = [outcome for outcome in outcomes if isinstance(outcome, Blocked)]
    if blocked:
        return blocked[0]
    return Wait("the servers that could hold it are not healthy")


def _shortage(members: tuple[UnitSpec, ...], server: Server, limits: Limits) -> str | None:
    """Why `members` can never be on `server` together, or None where they can."""
    need = memory.total(reservation(member, server.budget, limits) for member in members)
    # A guess must not rule a unit out: only what was declared, learned or lies on disk does.
    certain = memory.total(
        reservation(member, server.budget, limits)
        if member.size_known
        else dict.fromkeys(server.budget, member.artifact_bytes)
        for member in members
    )
    over = memory.excess(certain, server.budget)
    if over:
        return (
            f"{server.id} has {memory.text({r: server.budget[r] for r in over})}, "
            f"it needs {memory.text({r: need.get(r, 0) for r in over})}"
        )
    wanted = sum(member.slots for member in members)
    if server.max_models and wanted > server.max_models:
        return f"{server.id} holds {server.max_models} models at a time, it is made of {wanted}"
    return None


def _on_server(
    members: tuple[UnitSpec, ...], view: ServerView, specs: Specs, limits: Limits
) -> Place | Wait | Blocked:
    leaving = [
        member.unit
        for member in members
        if member.unit in view.replicas
        and view.replicas[member.unit].state in (State.DRAINING, State.UNLOADING)
    ]
    if leaving:
        return Wait(f"{leaving[0]} is still on its way out of {view.server.id}")
    missing = tuple(member for member in members if member.unit not in view.replicas)
    chosen = victims.choose(members, missing, view, specs, limits)
    if not isinstance(chosen, tuple):
        return chosen
    need = memory.total(reservation(m, view.server.budget, limits) for m in missing)
    return Place(
        view.server.id,
        missing,
        chosen,
        f"{memory.text(need)} on {view.server.id}"
        + (f", after {', '.join(map(str, chosen))}" if chosen else ", which has room"),
    )


# --- scores: each in [0, 1], 1 is best ------------------------------------------------------------


def _undisturbed(choice: Place, view: ServerView, limits: Limits, now: float) -> float:
    """1 when nothing has to leave, else 1 / (1 + victims)."""
    return 1 / (1 + len(choice.victims))


def _victims_idle(choice: Place, view: ServerView, limits: Limits, now: float) -> float:
    """How long the most recently used victim has been idle: 1/2 at a minute."""
    if not choice.victims:
        return 1.0
    idle = min(max(0.0, now - view.replicas[unit].last_used) for unit in choice.victims)
    return idle / (idle + 60)


def _memory_free(choice: Place, view: ServerView, limits: Limits, now: float) -> float:
    """The least free share of any budgeted resource."""
    taken = reserved(view.replicas.values())
    shares = [1 - taken.get(r, 0) / limit for r, limit in view.server.budget.items() if limit]
    return min(1.0, max(0.0, min(shares, default=1.0)))


def _quiet(choice: Place, view: ServerView, limits: Limits, now: float) -> float:
    """1 / (1 + loads under way or queued)."""
    busy = (State.QUEUED, State.LOADING)
    return 1 / (1 + sum(replica.state in busy for replica in view.replicas.values()))


Score = Callable[[Place, ServerView, Limits, float], float]

SCORES: Final[tuple[tuple[float, Score], ...]] = (
    (0.4, _undisturbed),
    (0.2, _victims_idle),
    (0.2, _memory_free),
    (0.2, _quiet),
)


def score(choice: Place, view: ServerView, limits: Limits, now: float) -> float:
    """The weighted mean of `SCORES`, in [0, 1]."""
    return sum(weight * measure(choice, view, limits, now) for weight, measure in SCORES)
