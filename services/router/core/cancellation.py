"""Decides whether a server is told that nobody waits for a request any more."""

import re
from enum import StrEnum
from typing import Final

# Release 25.06. Before it, a reset while a response is written can end the process or leave a model
# UNLOADING for ever.
SOUND_FROM: Final = (2, 59)

_VERSION: Final = re.compile(r"(\d{1,9})\.(\d{1,9})(?:\D|$)")


class Cancellation(StrEnum):
    """When servers are told.

    NEVER   Every request runs to its end.
    ALWAYS  At once.
    AUTO    If the server's release bears it."""

    NEVER = "never"
    ALWAYS = "always"
    AUTO = "auto"


def bears_cancellation(version: str) -> bool:
    """Return whether a Triton of that version survives any cancellation; False if the version is
    not one of Triton's."""
    found = _VERSION.match(version)
    return found is not None and (int(found[1]), int(found[2])) >= SOUND_FROM
