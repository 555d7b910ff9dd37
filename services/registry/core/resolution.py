"""Which versions an ensemble, or a model that calls others, is made of.

A step that names no version is given its part's default version once, and keeps it: a canary of the
part must not take over every ensemble that uses it. Only when that version may no longer be served
does the step move to the default version of that time.

Triton refuses an ensemble that leads back to its own *model*, whatever the versions, so that is
refused here too.

Parts that nobody declared, but that were learned from a model's code or from a call that failed,
follow the same rule. They never make a version invalid: one that cannot be served, or that leads
back, has no chosen version and does not count.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from services.registry.core.catalogue import Entry, Part, Version, VersionState

Find = Callable[[str], Entry | None]


def resolved(version: Version, find: Find) -> Version:
    """Return the version with its parts chosen.

    `parts_problem` says why one could not be, and `parts_waiting` which of them waits.
    """
    declared = [part for part in version.parts if not part.learned]
    choices = [
        _learned_choice(version.model, part, find)
        if part.learned
        else _choice(part, find(part.model))
        for part in version.parts
    ]
    loop = _loop(version.model, declared, find, set())
    problems = [problem for _, problem in choices if problem]
    if loop:
        problems = [f"its parts lead back to it: {' → '.join((version.model, *loop))}"]
    return replace(
        version,
        parts=tuple(part for part, _ in choices),
        parts_problem=problems[0] if problems else "",
        parts_waiting=next(
            (text for part, _ in choices if not part.learned and (text := _waiting(part, find))), ""
        ),
    )


def parts_first(parts_of: dict[str, set[str]]) -> list[str]:
    """Return the models, each after those that it is made of, otherwise in the order of names.

    Loops are broken anywhere; `resolved` refuses them.
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


def _learned_choice(model: str, part: Part, find: Find) -> tuple[Part, str]:
    """Return the learned part of `model` with the version that it stands for, or with none."""
    choice, problem = _choice(part, find(part.model))
    if problem or _waiting(choice, find) or _loop(model, (choice,), find, set()):
        choice = replace(part, chosen=0)
    return choice, ""


def _choice(part: Part, entry: Entry | None) -> tuple[Part, str]:
    if entry is None:
        return part, f"its part {part.model!r} is not registered"
    wanted = part.written or part.chosen
    version = entry.versions.get(wanted)
    if version is not None and (version.answers or version.waits_for):
        return replace(part, chosen=wanted), ""
    if not part.written and entry.default_version:
        return replace(part, chosen=entry.default_version), ""
    if not part.written:
        return part, f"no version of its part {part.model!r} is approved"
    if version is None:
        return part, f"its part {part.model!r} version {wanted} is not registered"
    why = f": {version.problem}" if version.problem else ""
    return part, f"its part {part.model!r} version {wanted} is {version.state.value}{why}"


def _waiting(part: Part, find: Find) -> str:
    """Return in words that the part's version waits, or ""."""
    entry, number = find(part.model), part.written or part.chosen
    version = entry.versions.get(number) if entry is not None else None
    if version is None or version.state is not VersionState.WAITING:
        return ""
    return f"its part {part.model!r} version {number} is waiting: {version.waits_for}"


def _loop(
    model: str, parts: Iterable[Part], find: Find, seen: set[tuple[str, int]]
) -> tuple[str, ...] | None:
    """Return the models on a path from `parts` back to `model`, or None. `seen` are dead ends."""
    for part in parts:
        if part.model == model:
            if part.learned and not part.chosen:
                continue
            return (model,)
        if (part.model, part.chosen) in seen:
            continue
        seen.add((part.model, part.chosen))
        for version in _candidates(part, find(part.model)):
            if rest := _loop(model, version.parts, find, seen):
                return (part.model, *rest)
    return None


def _candidates(part: Part, entry: Entry | None) -> Iterable[Version]:
    """Return what the part may stand for: any version while none is chosen, unless it was learned
    and does not count then."""
    if entry is None or (part.learned and not part.chosen):
        return ()
    chosen = entry.versions.get(part.chosen)
    return (chosen,) if chosen else entry.versions.values()
