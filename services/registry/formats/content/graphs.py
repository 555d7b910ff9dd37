"""Graphs of nodes: whether they end."""

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from services.registry.formats.refusal import Refusal


def check_acyclic(needs: Mapping[str, Iterable[str]], name: str) -> None:
    """Check that no node needs itself, however far round. Raises Refusal."""
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = list(error.args[1])
        told = " -> ".join(str(node)[:100] for node in circle[:6])
        more = " -> …" if len(circle) > 6 else ""
        raise Refusal(f"the graph in {name} goes in a circle: {told}{more}") from None


def check_tree(left: Sequence[int], right: Sequence[int], name: str) -> None:
    """Check that every node but the first has one parent. A negative child is a leaf or nothing.

    Raises Refusal.
    """
    if len(left) != len(right):
        raise Refusal(f"{name} has {len(left)} left children and {len(right)} right ones")
    seen = {0}
    for children in zip(left, right, strict=True):
        for child in children:
            if child < 0:
                continue
            if child >= len(left):
                raise Refusal(f"{name} has a child {child}, and only {len(left)} nodes")
            if child in seen:
                raise Refusal(f"{name} goes in a circle: node {child} has two parents")
            seen.add(child)
