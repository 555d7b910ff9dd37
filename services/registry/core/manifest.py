"""The list of a version's files, each with its digest, and which files of a source belong to it."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from services.registry.core.errors import InvalidArtifact, UnsafeContent
from services.registry.core.source import checked_path, shown
from shoal import names

MAX_FILES: Final = 100_000

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """A file: its path below the model's folder, the SHA-256 of its content, its size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class TreeManifest:
    """All files of a version, by path."""

    items: tuple[Item, ...]

    @classmethod
    def of(cls, items: Iterable[Item]) -> "TreeManifest":
        """Make a manifest. Raises UnsafeContent."""
        found = tuple(sorted(items))
        check_paths([item.path for item in found])
        return cls(found)

    @classmethod
    def read(cls, text: bytes) -> "TreeManifest":
        """Read what `text` has written. Raises ValueError."""
        try:
            return cls(
                tuple(Item(str(path), str(sha), int(size)) for path, sha, size in _rows(text))
            )
        except TypeError as error:
            raise ValueError("it is no manifest") from error

    @cached_property
    def text(self) -> bytes:
        rows = [[item.path, item.sha256, item.size] for item in self.items]
        return json.dumps({"files": rows}, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.text).hexdigest()

    @property
    def size(self) -> int:
        """Return the total size in bytes."""
        return sum(item.size for item in self.items)

    @property
    def contents(self) -> dict[str, int]:
        """Return the size of each content, by its SHA-256."""
        return {item.sha256: item.size for item in self.items}

    @property
    def newest_folder(self) -> int:
        """Return the highest number of a version's folder, or 0 if there is none."""
        return max((number for item in self.items if (number := _number(item.path))), default=0)


def _rows(text: bytes) -> Sequence[tuple[object, object, int]]:
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("files"), list):
        raise ValueError("it is no manifest")
    rows: Sequence[tuple[object, object, int]] = document["files"]
    return rows


def is_sha256(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def check_paths(paths: Collection[str]) -> None:
    """Check that files with these paths can lie in one folder together. Raises UnsafeContent."""
    if not 1 <= len(paths) <= MAX_FILES:
        raise UnsafeContent(
            path="the source", problem=f"it has {len(paths)} files; 1 to {MAX_FILES} are allowed"
        )
    seen: set[str] = set()
    for path in paths:
        if checked_path(path) in seen:
            raise UnsafeContent(path=shown(path), problem="there are two files of that name")
        seen.add(path)
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if (folder := "/".join(parts[:depth])) in seen:
                raise UnsafeContent(path=shown(folder), problem="it is both a file and a folder")


def inside(paths: Iterable[str], folder: str) -> dict[str, str]:
    """Return the paths that lie in `folder` of a source, each with its path below that."""
    prefix = f"{folder}/" if folder else ""
    return {path: path[len(prefix) :] for path in paths if path.startswith(prefix)}


def of_version(paths: Mapping[str, str], number: int) -> dict[str, str]:
    """Return what one version needs of a model's files: the folders of others are left out.

    `paths` have the path below the model's folder as their value. `number` 0 stands for the highest
    one. Raises InvalidArtifact.
    """
    numbers = {found for path in paths.values() if (found := _number(path))}
    if not numbers:
        return dict(paths)
    chosen = number or max(numbers)
    if chosen not in numbers:
        listed = ", ".join(map(str, sorted(numbers)))
        raise InvalidArtifact(
            path="the source", problem=f"it has no folder for version {chosen}, only for {listed}"
        )
    return {key: path for key, path in paths.items() if _number(path) in (None, chosen)}


def without_top(paths: Collection[str]) -> dict[str, str]:
    """Return paths without the one folder that all of them lie in, unless that is a version's."""
    tops = {path.partition("/")[0] for path in paths}
    if len(tops) == 1 and not any(map(_number, paths)) and all("/" in path for path in paths):
        return {path: path.partition("/")[2] for path in paths}
    return {path: path for path in paths}


def models_of(
    paths: Iterable[str], config: str, model_files: Collection[str]
) -> tuple[dict[str, list[int]], list[tuple[str, str]]]:
    """Return the folders that hold models, with their versions, and what holds none, with reasons.

    The folder "" is a source that is one model itself. Version 0 stands for content without a
    number. `config` is the name of config files, `model_files` those of models.
    """
    inner: dict[str, set[str]] = {}
    top: set[str] = set()
    for path in paths:
        folder, slash, rest = path.partition("/")
        if not slash:
            top.add(path)
        elif not folder.startswith("."):
            inner.setdefault(folder, set()).add(rest)
    found: dict[str, list[int]] = {}
    problems: list[tuple[str, str]] = []
    numbered = [folder for folder in inner if names.parse_version(folder)]
    bare = [folder for folder in numbered if not any(map(_number, inner[folder]))]
    if config in top or top & set(model_files) or (bare and len(bare) == len(inner)):
        return {"": sorted(map(int, numbered)) or [0]}, []
    for folder, rests in sorted(inner.items()):
        numbers = sorted({number for rest in rests if (number := _number(rest))})
        if not names.is_model_name(folder):
            problems.append((folder, f"its name cannot be a model's: {names.MODEL_NAME_RULE}"))
        elif numbers or config in rests or rests & set(model_files):
            found[folder] = numbers or [0]
        else:
            problems.append((folder, f"not a model: it has no {config} and no numbered folder"))
    return found, problems


def _number(path: str) -> int | None:
    folder, slash, _ = path.partition("/")
    return names.parse_version(folder) if slash else None
