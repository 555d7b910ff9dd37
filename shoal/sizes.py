"""Memory sizes as people write them: `2GiB`, `512MiB`, `1.5G`."""

import re
from typing import Final

_TEXT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

ALLOWED: Final = (
    "a number of bytes, or a number with a unit, such as 2GiB, 512MiB or 1.5G: KiB, MiB, GiB, TiB "
    "(or Ki, Mi, …) are powers of 1024, kB, MB, GB, TB (or K, M, …) are powers of 1000"
)


def parse_size(text: str) -> int:
    """Return the number of bytes in `text`. Raises ValueError, which says what is allowed."""
    match = _TEXT.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is not a size: write {ALLOWED}")
    base = 1024 if match[3] else 1000
    return round(float(match[1]) * float(base) ** _POWERS[match[2].lower()])


def format_size(size: int) -> str:
    """Return `size` bytes in the largest binary unit that leaves a number of 1 or more."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            number = size / 1024**power
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"
    return f"{size} B"
