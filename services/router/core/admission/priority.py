"""Priority classes, and the class of a request."""

import enum
from typing import Final

from services.common.errors import InvalidField

HEADER: Final = "x-shoal-priority"


class Priority(enum.IntEnum):
    """A priority class. Lower is more urgent, as with Triton's own `priority` parameter."""

    HIGH = 0
    NORMAL = 1
    LOW = 2

    @property
    def label(self) -> str:
        return self.name.lower()


_NAMES: Final = {priority.label: priority for priority in Priority}


def priority_of(header: str | bytes | None, parameter: int, highest: Priority) -> Priority:
    """Return the class of a request.

    `header` is the value of its header, or None without one. `parameter` is the request's
    `priority` in Triton's terms: 1 is the most urgent, 0 the model's default. `highest` is the most
    urgent class that its tenant may use, which replaces any above it. Raises InvalidField."""
    if header is not None:
        given = header.decode(errors="replace") if isinstance(header, bytes) else header
        found = _NAMES.get(given.strip().lower())
        if found is None:
            problem = f"{given[:64]!r} is none of {', '.join(_NAMES)}."
            raise InvalidField(field=f"header {HEADER}", problem=problem)
    elif parameter:
        found = Priority(min(parameter, len(Priority)) - 1)
    else:
        found = Priority.NORMAL
    return max(found, highest)
