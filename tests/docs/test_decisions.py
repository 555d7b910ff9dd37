"""Decision records have one form, and one list."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "decisions"
RECORDS = sorted(FOLDER.glob("0*.md"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_its_status_first_and_then_why(record: Path) -> None:
    text = record.read_text()
    assert re.match(rf"Status: \w.*\n\n# {record.stem[:4]} \w", text)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_the_list_has_all_of_them_with_their_titles() -> None:
    rows = re.findall(
        r"^\| \[(\d+)\]\((.+?)\) \| (.+) \|$", (FOLDER / "README.md").read_text(), re.M
    )
    titles = [re.findall(r"^# \d+ (.+)$", path.read_text(), re.M)[0] for path in RECORDS]
    numbers = [path.stem[:4] for path in RECORDS]
    assert rows == list(zip(numbers, [path.name for path in RECORDS], titles, strict=True))
