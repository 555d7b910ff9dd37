"""Memory as a vector: bytes by resource ("ram", "gpu:0"). What is not named is zero."""

from collections.abc import Iterable, Mapping
from typing import Final

Memory = Mapping[str, int]

NOTHING: Final[Memory] = {}
GIB: Final = 1 << 30


def plus(*vectors: Memory) -> Memory:
    return total(vectors)


def total(vectors: Iterable[Memory]) -> Memory:
    listed = vectors if isinstance(vectors, list) else list(vectors)
    if len(listed) == 1:
        return listed[0]
    result: dict[str, int] = {}
    for vector in listed:
        for resource, amount in vector.items():
            result[resource] = result.get(resource, 0) + amount
    return result


def highest(a: Memory, b: Memory) -> Memory:
    """The larger amount of each resource."""
    return {resource: max(a.get(resource, 0), b.get(resource, 0)) for resource in {*a, *b}}


def scaled(vector: Memory, factor: float) -> Memory:
    return {resource: round(amount * factor) for resource, amount in vector.items()}


def excess(used: Memory, budget: Memory) -> Memory:
    """How far `used` exceeds `budget`; a resource that the budget does not name is unlimited."""
    over = {name: used.get(name, 0) - limit for name, limit in budget.items()}
    return {name: amount for name, amount in over.items() if amount > 0}


def fits(used: Memory, budget: Memory) -> bool:
    for resource, limit in budget.items():  # noqa: SIM110  all() takes twice as long
        if used.get(resource, 0) > limit:
            return False
    return True


def text(vector: Memory) -> str:
    """A vector in words: `gpu:0 300 MiB, ram 1.50 GiB`."""
    return ", ".join(f"{name} {size(vector[name])}" for name in sorted(vector)) or "nothing"


def size(amount: int) -> str:
    """A number of bytes in words: `1.50 GiB`."""
    return f"{amount / GIB:.2f} GiB" if amount >= GIB else f"{amount / (1 << 20):.0f} MiB"
