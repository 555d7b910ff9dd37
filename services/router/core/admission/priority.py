"""Priority classes, and which one a request belongs to."""

import enum
from typing import Final

from services.common.errors import InvalidField

HEADER: Final = "x-shoal-priority"


class Priority(enum.IntEnum):
    """The smaller the more urgent, as with Triton's own `priority` parameter."""

    HIGH = 0
    NORMAL = 1
    LOW = 2

    @property
    def label(self) -> str:
        return self.name.lower()


_NAMES: Final = {priority.label: priority for priority in Priority}


def priority_of(said: str | bytes | None, parameter: int, highest: Priority) -> Priority:
    """`said`: the header's value, None without one. `parameter`: the request's own `priority`, in
    Triton's words: 1 is the most urgent, 0 the model's default. `highest`: the most urgent that
    its tenant may use; more is taken for that. Raises InvalidField.
    """
    if said is not None:
        given = said.decode(errors="replace") if isinstance(said, bytes) else said
        found = _NAMES.get(given.strip().lower())
        if found is None:
            problem = f"{given[:64]!r} is none of {', '.join(_NAMES)}."
            raise InvalidField(field=f"header {HEADER}", problem=problem)
    elif parameter:
        found = Priority(min(parameter, len(Priority)) - 1)
    else:
        found = Priority.NORMAL
    return max(found, highest)
