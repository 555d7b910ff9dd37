"""The page of dated results: the newest section of each kind, in the order in which they came."""

import re
from pathlib import Path
from typing import Final

RESULTS: Final = Path(__file__).with_name("RESULTS.md")

_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}: ")


def record(section: str, page: Path = RESULTS) -> None:
    """Add a section to the page. One of the same title, but for the date in front, goes."""
    before = page.read_text() if page.exists() else "# Results\n"
    page.write_text(with_newest(before, section))


def with_newest(page: str, section: str) -> str:
    """Return the page with the section at its end, and without an older one of its kind."""
    head, *parts = re.split(r"^## ", page, flags=re.MULTILINE)
    kind = _kind(section.strip().removeprefix("## "))
    kept = [part for part in parts if _kind(part) != kind]
    sections = [f"## {part.strip()}" for part in kept]
    return "\n\n".join([head.strip(), *sections, section.strip()]) + "\n"


def _kind(section: str) -> str:
    return _DATE.sub("", section.partition("\n")[0].strip(), count=1)
