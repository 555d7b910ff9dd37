#!/usr/bin/env python3
"""Prints what CHANGELOG.md says of one version, as the text of its release.

    .ci/release_notes.py v1.2.3 [--pages URL]

Ends with status 1, and says why, where the tag is not the version in pyproject.toml or the
changelog says nothing of it.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class NoNotes(Exception):
    """This version cannot be released; the text says what is missing."""


def notes(tag: str, version: str, changelog: str, pages: str | None = None) -> str:
    """Return the notes for the release that `tag` asks for.

    `version` is that of the project. `pages` is the URL that the changelog's relative links are
    relative to. Raises NoNotes.
    """
    if tag != f"v{version}":
        raise NoNotes(f"the tag is {tag}, and pyproject.toml has version {version}")
    text = unwrapped(section(version, changelog))
    return text if pages is None else linked(text, pages)


def section(version: str, changelog: str) -> str:
    """Return what stands below `## 1.2.3 - 2026-01-31`, which may also be written `## [1.2.3]`."""
    heading = rf"^## \[?{re.escape(version)}\]?(?: [^\n]*)?$"
    found = re.search(rf"{heading}\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise NoNotes(f"CHANGELOG.md has no heading `## {version}`")
    if not (text := found[1].strip()):
        raise NoNotes(f"CHANGELOG.md says nothing below `## {version}`")
    return f"{text}\n"


def unwrapped(text: str) -> str:
    """Join the lines of each item: in a release's text every line break is shown."""
    return re.sub(r"\n +(?![-*] )(?=\S)", " ", text)


def linked(text: str, pages: str) -> str:
    """Let relative links lead to `pages`."""
    return re.sub(r"\]\((?![a-z]+:|#)", f"]({pages.rstrip('/')}/", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the notes of a release.")
    parser.add_argument("tag")
    parser.add_argument("--pages", metavar="URL", help="what relative links are relative to")
    given = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    try:
        sys.stdout.write(notes(given.tag, project["version"], changelog, given.pages))
    except NoNotes as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
