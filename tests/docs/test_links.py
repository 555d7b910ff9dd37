"""Links between the pages lead somewhere."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
).stdout.splitlines()
PAGES = sorted(page for page in TRACKED if (ROOT / page).is_file())


def prose(page: Path) -> str:
    """The text without what stands in fences and comments."""
    return re.sub(
        r"^ *```.*?^ *```|<!--.*?-->", "", page.read_text(), flags=re.DOTALL | re.MULTILINE
    )


def links(page: Path) -> Iterator[str]:
    """Targets of links and pictures."""
    text = re.sub(r"`[^`\n]*`", "code", prose(page))
    yield from re.findall(r"\]\(([^()\s]+)\)", text)
    yield from re.findall(r"^\[[^\]]+\]:\s+(\S+)", text, re.MULTILINE)


@cache
def anchors(page: Path) -> set[str]:
    """As GitHub derives them from headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 1
        while (distinct := anchor if number == 1 else f"{anchor}-{number - 1}") in found:
            number += 1
        found.add(distinct)
    return found


def test_there_are_pages() -> None:
    assert {"README.md", "docs/README.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = ROOT / page
    for link in links(here):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (here.parent / path).resolve() if path else here
        assert target.exists(), f"{page}: {link} leads nowhere"
        assert target.is_relative_to(ROOT.resolve()), f"{page}: {link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}: there is no such heading"


def test_every_page_of_the_documentation_is_reached_from_its_start() -> None:
    start = ROOT / "docs" / "README.md"
    linked = {(start.parent / link.partition("#")[0]).resolve() for link in links(start)}
    assert {path for path in start.parent.glob("*.md") if path != start} <= linked
