"""The code in docs/clients.md and README.md."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def blocks(mark: str, page: str = "docs/clients.md") -> list[str]:
    """Return every fenced block that follows `<!-- mark -->`."""
    text = (ROOT / page).read_text()
    found = re.findall(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)```", text, re.DOTALL)
    assert found, mark
    return list(found)
