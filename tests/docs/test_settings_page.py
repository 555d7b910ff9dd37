"""docs/settings.md is what the settings classes say, and leaves no variable out."""

import re
from pathlib import Path

from docs import generate_settings

ROOT = Path(__file__).resolve().parents[2]
INTERNAL = {"SHOAL_RUN", "SHOAL_PART"}  # marks on the processes of a stack


def test_the_page_is_fresh() -> None:
    written = generate_settings.PAGE.read_text()
    assert written == generate_settings.page(), f"stale: run {generate_settings.COMMAND}"


def test_every_variable_in_the_code_is_on_the_page() -> None:
    page = generate_settings.PAGE.read_text()
    sources = [*ROOT.glob("services/**/*.py"), *ROOT.glob("shoal/**/*.py")]
    named = {
        name
        for path in sources
        for name in re.findall(r'"(SHOAL_[A-Z0-9_]*[A-Z0-9])"', path.read_text())
    }
    assert {name for name in named - INTERNAL if f"`{name}`" not in page} == set()
