"""The page of results keeps the newest section of each kind."""

from pathlib import Path

from bench.results import record, with_newest

PAGE = """# Results

Words.

## 2026-01-01: one kind

old

## Another kind

kept
"""


def test_the_newest_of_a_kind_takes_the_place_of_the_older() -> None:
    found = with_newest(PAGE, "## 2026-02-02: one kind\n\nnew\n")
    assert (
        found
        == """# Results

Words.

## Another kind

kept

## 2026-02-02: one kind

new
"""
    )


def test_a_section_of_another_kind_is_added() -> None:
    found = with_newest(PAGE, "\n## One kind, with more\n\nnew")
    assert found == PAGE + "\n## One kind, with more\n\nnew\n"


def test_a_page_begins_with_its_first_section(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    record("## 2026-02-02: one kind\n\nnew", page)
    assert page.read_text() == "# Results\n\n## 2026-02-02: one kind\n\nnew\n"
