"""How much memory this process can have."""

from pathlib import Path
from typing import Final

import psutil

# The limit of this process's control group, as containers see it: version 2, then 1.
_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def total_memory() -> int:
    """Return the bytes of memory of the machine, or of the container if that has less."""
    found = [int(psutil.virtual_memory().total)]
    for limit in _LIMITS:
        try:
            said = limit.read_text().strip()
        except OSError:
            continue
        if said.isdigit():  # else there is no limit
            found.append(int(said))
    return min(found)
