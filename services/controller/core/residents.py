"""What is on a server: who needs whom there, and what it all takes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from services.controller.core import memory
from services.controller.core.entities import Replica, Replicas, Server, Unit, UnitSpec
from services.controller.core.memory import Memory
from services.controller.core.states import OCCUPYING

Specs = Mapping[Unit, UnitSpec]

PINNED: Final = "pinned"


@dataclass(frozen=True, slots=True)
class ServerView:
    """A server with its replicas, and which of those may not be evicted now, with the reason."""

    server: Server
    replicas: Replicas
    protected: Mapping[Unit, str]


def group(spec: UnitSpec, specs: Specs) -> tuple[UnitSpec, ...]:
    """The unit and all that it requires, parts first, each once. Unknown parts are left out."""
    found: list[UnitSpec] = []
    seen: set[Unit] = set()

    def visit(member: UnitSpec) -> None:
        seen.add(member.unit)
        for part in member.requires:
            if part not in seen and part in specs:
                visit(specs[part])
        found.append(member)

    visit(spec)
    return tuple(found)


def holders(unit: Unit, replicas: Replicas, specs: Specs) -> frozenset[Unit]:
    """The replicas on the same server that need `unit` there, directly or through others."""
    found: set[Unit] = set()
    open_ = [unit]
    while open_:
        part = open_.pop()
        for other in replicas:
            if other not in found and other in specs and part in specs[other].requires:
                found.add(other)
                open_.append(other)
    return frozenset(found)


def reserved(replicas: Iterable[Replica]) -> Memory:
    """Bytes reserved by all of them, whatever their state."""
    return memory.total(replica.reserved for replica in replicas)


def slots_used(replicas: Iterable[Replica], specs: Specs) -> int:
    return sum(slots(replica.unit, specs) for replica in replicas)


def slots(unit: Unit, specs: Specs) -> int:
    """A unit that is no longer in the catalogue still takes a place until it is gone."""
    return specs[unit].slots if unit in specs else 1


def occupied(replicas: Replicas) -> Iterator[Replica]:
    return (replica for replica in replicas.values() if replica.state in OCCUPYING)


def clashing(spec: UnitSpec, replicas: Replicas, specs: Specs) -> Unit | None:
    """A version of the same model that is on the server with another config, if one is."""
    for replica in occupied(replicas):
        if clashes(replica.unit, (spec,), specs):
            return replica.unit
    return None


def clashes(unit: Unit, missing: tuple[UnitSpec, ...], specs: Specs) -> bool:
    return unit in specs and any(
        member.unit.model == unit.model
        and member.unit != unit
        and member.config_digest != specs[unit].config_digest
        for member in missing
    )
