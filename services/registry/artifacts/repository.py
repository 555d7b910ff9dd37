"""A folder with model folders in it: which of them are models, and why others are not.

Each entry is looked at on its own, so that one that cannot be read stops nothing but itself.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.registry.artifacts import tree
from services.registry.artifacts.scan import LIKE_A_VERSION, MODEL_FILES
from services.registry.artifacts.tree import CACHE, shown
from services.registry.formats.config import CONFIG_FILE
from shoal import names


@dataclass(frozen=True, slots=True)
class Problem:
    """A path in a repository that could not be imported, and why."""

    path: str
    reason: str


def find_models(
    repository: Path, within: Sequence[Path] = ()
) -> tuple[list[tuple[str, Path]], list[Problem]]:
    """Return the names and folders of the models in a repository, which may be one model's folder.

    Links may lead into the folders of `within`; without any, they must stay in the repository.
    Raises InvalidArtifact if the repository itself cannot be read.
    """
    try:
        entries = sorted(os.scandir(repository), key=lambda entry: entry.name)
    except OSError as error:
        raise tree.unreadable(repository, error) from None
    entries = [one for one in entries if not one.name.startswith(".") and one.name != CACHE]
    models: list[tuple[str, Path]] = []
    problems: list[Problem] = []
    folders = [repository] if _is_model(entries) else _candidates(entries, problems)
    for folder in folders:
        if problem := not_a_model(folder, within or (repository,)):
            problems.append(problem)
        else:
            models.append((folder.name, folder))
    return models, problems


def _candidates(entries: Iterable["os.DirEntry[str]"], problems: list[Problem]) -> list[Path]:
    """Return the folders among the entries, and add a problem for each link to nothing."""
    folders: list[Path] = []
    for entry in entries:
        if tree.is_folder(entry):
            folders.append(Path(entry.path))
        elif entry.is_symlink() and not tree.exists(Path(entry.path)):
            target = shown(os.path.realpath(entry.path))
            problems.append(Problem(shown(entry.path), f"it links to {target}, which is not there"))
    return folders


def not_a_model(folder: Path, within: Iterable[Path]) -> Problem | None:
    """Return why a folder in a repository is not imported, or None.

    Its links may lead into the folders of `within`.
    """
    reason = _why_not(folder, [Path(os.path.realpath(allowed)) for allowed in within])
    return Problem(shown(folder), reason) if reason else None


def _why_not(folder: Path, fence: Sequence[Path]) -> str:
    if not names.is_model_name(folder.name):
        return f"its name cannot be a model's: {names.MODEL_NAME_RULE}"
    real = Path(os.path.realpath(folder))
    if not any(real.is_relative_to(allowed) for allowed in fence):
        return f"it links to {shown(real)}, outside of the repository"
    try:
        content = {path.name for path in folder.iterdir()}
    except OSError as error:
        return error.strerror or str(error)
    if not any(name in MODEL_FILES or LIKE_A_VERSION.match(name) for name in content) and (
        CONFIG_FILE not in content
    ):
        return f"not a model: it has no {CONFIG_FILE}, no numbered folder and no model file"
    return ""


def _is_model(entries: Sequence["os.DirEntry[str]"]) -> bool:
    """Return whether a folder with these entries is one model rather than a repository of models.

    Models may be named like numbers, so numbered folders alone prove nothing. Files beside model
    folders prove nothing either: Triton ignores them.
    """
    found = {entry.name for entry in entries}
    folders = [Path(entry.path) for entry in entries if tree.is_folder(entry)]
    numbered = [folder for folder in folders if names.parse_version(folder.name)]
    if CONFIG_FILE in found and not all(map(_has_versions, numbered)):
        return True
    if any(_has_versions(one) or (one not in numbered and _has_config(one)) for one in folders):
        return False
    if CONFIG_FILE in found or found & MODEL_FILES:
        return True
    return bool(folders) and folders == numbered and all(MODEL_FILES & _names(f) for f in folders)


def _has_config(folder: Path) -> bool:
    return CONFIG_FILE in _names(folder)


def _has_versions(folder: Path) -> bool:
    """Return whether the folder holds numbered folders with model files."""
    return any(
        names.parse_version(name) and MODEL_FILES & _names(folder / name) for name in _names(folder)
    )


def _names(folder: Path) -> set[str]:
    """Return the names in a folder; none if it cannot be read."""
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()
