"""The code in docs/clients.md, and in README.md."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def blocks(mark: str, page: str = "docs/clients.md") -> list[str]:
    """Every fenced block after `<!-- mark -->`."""
    text = (ROOT / page).read_text()
    found = re.findall(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)```", text, re.DOTALL)
    assert found, mark
    return list(found)
