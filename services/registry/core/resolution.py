"""Which versions an ensemble, or a model that calls others, is made of.

A step that names no version takes its part's default version once, and keeps it: a canary of the
part must not take over every ensemble that uses it. Only when that version stops answering does
the step move to the default of that time.

Triton refuses ensembles that lead back to themselves by *model*, whatever the versions, so the same
holds here.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from services.registry.core.catalogue import Entry, Part, Version

Find = Callable[[str], Entry | None]


def resolved(version: Version, find: Find) -> Version:
    """The version with its parts chosen; `parts_problem` says why one could not be."""
    choices = [_choice(part, find(part.model)) for part in version.parts]
    loop = _loop(version.model, version.parts, find, set())
    problems = [problem for _, problem in choices if problem]
    if loop:
        problems = [f"its parts lead back to it: {' → '.join((version.model, *loop))}"]
    return replace(
        version,
        parts=tuple(part for part, _ in choices),
        parts_problem=problems[0] if problems else "",
    )


def parts_first(parts_of: dict[str, set[str]]) -> list[str]:
    """The models, each after those among them that it is made of; names decide the rest.

    Loops are broken anywhere: `resolved` is who refuses them.
    """
    ordered: dict[str, None] = {}

    def visit(model: str, above: frozenset[str]) -> None:
        if model in ordered or model in above or model not in parts_of:
            return
        for part in sorted(parts_of[model]):
            visit(part, above | {model})
        ordered[model] = None

    for model in sorted(parts_of):
        visit(model, frozenset())
    return list(ordered)


def _choice(part: Part, entry: Entry | None) -> tuple[Part, str]:
    if entry is None:
        return part, f"its part {part.model!r} is not registered"
    wanted = part.written or part.chosen
    version = entry.versions.get(wanted)
    if version is not None and version.answers:
        return replace(part, chosen=wanted), ""
    if not part.written and entry.default_version:
        return replace(part, chosen=entry.default_version), ""
    if not part.written:
        return part, f"no version of its part {part.model!r} is approved"
    if version is None:
        return part, f"its part {part.model!r} version {wanted} is not registered"
    why = f": {version.problem}" if version.problem else ""
    return part, f"its part {part.model!r} version {wanted} is {version.state.value}{why}"


def _loop(
    model: str, parts: Iterable[Part], find: Find, seen: set[tuple[str, int]]
) -> tuple[str, ...] | None:
    """The models on a way from `parts` back to `model`, or None. `seen` are dead ends."""
    for part in parts:
        if part.model == model:
            return (model,)
        if (part.model, part.chosen) in seen:
            continue
        seen.add((part.model, part.chosen))
        for version in _candidates(part, find(part.model)):
            if rest := _loop(model, version.parts, find, seen):
                return (part.model, *rest)
    return None


def _candidates(part: Part, entry: Entry | None) -> Iterable[Version]:
    """What the part may stand for: while nothing is chosen, any version."""
    if entry is None:
        return ()
    chosen = entry.versions.get(part.chosen)
    return (chosen,) if chosen else entry.versions.values()
