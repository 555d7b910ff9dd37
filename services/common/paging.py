"""Pages of a list, by key, so that insertions and deletions in between move nothing."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Final

from services.common.errors import InvalidField

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1000

Key = tuple[str, int]
START: Final[Key] = ("", 0)


@dataclass(frozen=True, slots=True)
class Page:
    """A page: at most `size` items whose key is greater than `after`."""

    size: int
    after: Key


def page(scope: str, size: int, token: str) -> Page:
    """Read a request's page. `scope` names the list, whose tokens fit no other list.

    Raises InvalidField.
    """
    if not 0 <= size <= MAX_SIZE:
        raise InvalidField(field="page_size", problem=f"{size} is not between 0 and {MAX_SIZE}")
    return Page(size or DEFAULT_SIZE, _key(scope, token) if token else START)


def token(scope: str, key: Key) -> str:
    """Return the token of the page after `key`, which is opaque to callers."""
    return base64.urlsafe_b64encode(json.dumps([scope, *key]).encode()).decode()


def _key(scope: str, given: str) -> Key:
    try:
        decoded = json.loads(base64.b64decode(given, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        decoded = None
    match decoded:
        case [str(of), str(name), int(number)] if of == scope:
            return name, number
    raise InvalidField(
        field="page_token", problem="it is not the next_page_token of this same list"
    )
