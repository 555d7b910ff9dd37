"""Models on disk: a Triton model repository, one model's folder, or one version's content.

A folder that contains a numbered folder is a model's. Any other is the bare content of a version,
whose config.pbtxt, if it has one, lies among the files. Everything here only reads.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelVersionPolicy

from services.registry.artifacts import probe, tree
from services.registry.artifacts.probe import PROBE_FILE
from services.registry.artifacts.tree import CACHE, Tree, shown
from services.registry.core.catalogue import Part
from services.registry.core.errors import InvalidArtifact
from services.registry.formats.config import (
    BACKENDS,
    CONFIG_FILE,
    complete_config,
    config_digest,
    label_files,
    parse_config,
    parts_of,
    runs_own_code,
    serialize,
)
from services.registry.formats.ensembles import is_ensemble
from services.registry.formats.refusal import Unservable
from services.registry.formats.version_policy import missing, why_left_out
from shoal import names

MAX_CONFIG: Final = 4 * 2**20  # bytes of a config.pbtxt

# Triton takes any name that begins like a number for a version, and its loader hangs on a negative
# one.
_LIKE_A_VERSION = re.compile(r"\s*[+-]?[0-9]")

# Files beside a model that Triton runs instead of the backend that the config names.
_CODE = re.compile(r"model\.py|libtriton_.*\.so|batchstrategy\.so|triton_python_backend_stub")

# Files that say how a version is served, and are not served themselves.
_OWN_FILES: Final = frozenset({CONFIG_FILE, PROBE_FILE})

_MODEL_FILES: Final = frozenset(filename for _, _, filename in BACKENDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What one version's files say; with a `problem` they cannot be served.

    `probe` is a serialized inference.ModelInferRequest, or empty.
    """

    model: str
    source: str
    files: Tree
    auxiliary: Tree
    config: bytes
    config_digest: str
    auxiliary_digest: str
    fingerprint: str
    ensemble: bool
    parts: tuple[Part, ...]
    probe: bytes
    problem: str


@dataclass(frozen=True, slots=True)
class Source:
    """A folder with versions of a model.

    `numbers` are its versions, and `strays` the folders that only look like versions. A `bare`
    source is the content of one version, whose number is 0 if the folder's name does not tell.
    `auxiliary` are the files beside config.pbtxt. `folders` are all versions in the model's folder,
    where only some are asked for.
    """

    model: str
    path: Path
    numbers: tuple[int, ...]
    bare: bool
    config: ModelConfig | Unservable
    auxiliary: Tree
    strays: tuple[str, ...] = ()
    folders: tuple[int, ...] = ()

    @property
    def newest(self) -> int:
        """Return the highest version that the config offers, or else the highest of all."""
        return max(
            (one for one in self.numbers if not self.left_out(one)), default=self.numbers[-1]
        )

    @property
    def absent(self) -> list[int]:
        """Return the versions that the config's version_policy names, but that have no folder."""
        return missing(self._policy, self.folders or self.numbers)

    def left_out(self, number: int) -> str:
        """Return why the config's version_policy leaves a version out, or ""."""
        return why_left_out(self._policy, number, self.folders or self.numbers)

    @property
    def _policy(self) -> ModelVersionPolicy:
        """Return what chooses among the folders of one model. Bare content is no such folder."""
        if self.bare or isinstance(self.config, Unservable):
            return ModelVersionPolicy()
        return self.config.version_policy

    def folder(self, number: int) -> Path:
        return self.path if self.bare else self.path / str(number)


@dataclass(frozen=True, slots=True)
class Problem:
    """A path in a repository that could not be imported, and why."""

    path: str
    reason: str


def open_source(path: Path, model: str) -> Source:
    """Look into a model's folder, or a version's content. Raises InvalidArtifact."""
    try:
        folders = {entry.name: entry.is_dir() for entry in os.scandir(path)}
        config = _read_config(path) if CONFIG_FILE in folders else ModelConfig()
    except OSError as error:
        raise tree.unreadable(path, error) from None
    numeric = [name for name, folder in folders.items() if folder and _LIKE_A_VERSION.match(name)]
    found = {name: names.parse_version(name) for name in numeric}
    numbers = tuple(sorted(number for number in found.values() if number))
    strays = tuple(sorted(name for name, number in found.items() if not number))
    labels = _labels(config)
    if not numbers and _is_ensemble(config) and folders.keys() <= {*_OWN_FILES, *labels}:
        # An ensemble's version folder is empty, and Git does not keep empty folders.
        numbers = (1,)
    if numbers:
        auxiliary = tree.read(path, path, _is_auxiliary)
        return Source(model, path, numbers, False, config, auxiliary, strays)
    auxiliary = tree.read(path, path, lambda name: name in labels)
    return Source(model, path, (names.parse_version(path.name) or 0,), True, config, auxiliary)


def open_registered(path: Path, model: str, number: int) -> Source:
    """Look into what is to be registered as version `number` (0: any). Raises InvalidArtifact.

    A numbered folder inside a model's folder is that version of the model.
    """
    own = names.parse_version(path.name)
    inside = own is not None and number in (0, own) and (path.parent / CONFIG_FILE).is_file()
    if own is None or not inside or not path.is_dir():
        return open_source(path, model)
    source = open_source(path.parent, model)
    return replace(source, numbers=(own,), strays=(), folders=source.numbers)


def scan_version(source: Source, number: int, kind: str) -> Scan:
    """Scan one version of `source`. `kind` is the instance kind if its config gives none.

    Raises InvalidArtifact if its files are not safe to serve or cannot be read.
    """
    folder = source.folder(number)
    exists = folder.is_dir()
    if not exists and not _is_ensemble(source.config):
        raise InvalidArtifact(path=shown(folder), problem="its folder is gone")
    config, parts, asked, problem = b"", tuple[Part, ...](), b"", ""
    files, auxiliary = Tree(), source.auxiliary
    try:
        if left_out := source.left_out(number):
            raise Unservable(left_out)
        if exists:
            files = tree.read(folder, source.path, lambda name: not _is_own(source, name))
        complete = _completed(source, folder if exists else None, kind)
        if not runs_own_code(complete):
            files, auxiliary = tree.without(files, _is_code), tree.without(auxiliary, _is_code)
        parts = parts_of(complete)
        asked = _read_probe(source, folder, complete)
        config = serialize(complete)
    except Unservable as error:
        problem = str(error)
    except OSError as error:
        raise tree.unreadable(folder, error) from None
    auxiliary_digest = _digest(auxiliary, source.path)
    said = f"{auxiliary_digest} {tree.stat_digest(files)} {problem}".encode() + asked
    return Scan(
        model=source.model,
        source=str(source.path),
        files=files,
        auxiliary=auxiliary,
        config=config,
        config_digest=config_digest(config, auxiliary_digest) if config else "",
        auxiliary_digest=auxiliary_digest,
        fingerprint=hashlib.sha256(config + b"\0" + said).hexdigest(),
        ensemble=_is_ensemble(source.config),
        parts=parts,
        probe=asked,
        problem=problem,
    )


def _digest(auxiliary: Tree, path: Path) -> str:
    try:
        return tree.content_digest(auxiliary)
    except OSError as error:
        raise tree.unreadable(path, error) from None


def find_models(repository: Path) -> tuple[list[tuple[str, Path]], list[Problem]]:
    """Return the names and folders of the models in a repository, which may be one model's folder.

    Raises InvalidArtifact if the folder itself cannot be read.
    """
    try:
        if _is_model(repository):
            return _named([repository], repository)
        return _named(
            (
                repository / entry.name
                for entry in sorted(os.scandir(repository), key=lambda entry: entry.name)
                if entry.is_dir() and not entry.name.startswith(".") and entry.name != CACHE
            ),
            repository,
        )
    except OSError as error:
        raise tree.unreadable(repository, error) from None


def _named(
    folders: Iterable[Path], repository: Path
) -> tuple[list[tuple[str, Path]], list[Problem]]:
    models: list[tuple[str, Path]] = []
    problems: list[Problem] = []
    for folder in folders:
        if reason := _why_not(folder, repository):
            problems.append(Problem(shown(folder), reason))
        else:
            models.append((folder.name, folder))
    return models, problems


def _why_not(folder: Path, repository: Path) -> str:
    if not names.is_model_name(folder.name):
        return (
            "its name cannot be a model's: letters, digits, '_', '.', '+', '@' and '-' only, not "
            "'.' or '-' first"
        )
    if not folder.resolve().is_relative_to(repository.resolve()):
        return f"it links to {shown(folder.resolve())}, outside of the repository"
    content = _names(folder)
    if not any(name in _MODEL_FILES or _LIKE_A_VERSION.match(name) for name in content) and (
        CONFIG_FILE not in content
    ):
        return f"not a model: it has no {CONFIG_FILE}, no numbered folder and no model file"
    return ""


def _is_model(path: Path) -> bool:
    """Return whether the folder is one model rather than a repository of models.

    Models may be named like numbers, so numbered folders alone prove nothing.
    """
    entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    if any(entry.name == CONFIG_FILE or entry.name in _MODEL_FILES for entry in entries):
        return True
    folders = [entry for entry in entries if entry.is_dir()]
    return bool(folders) and all(
        names.parse_version(folder.name) and _MODEL_FILES & _names(Path(folder))
        for folder in folders
    )


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _completed(source: Source, folder: Path | None, kind: str) -> ModelConfig:
    """Raises Unservable, OSError."""
    if isinstance(source.config, Unservable):
        raise source.config
    beside = {file.relative for file in source.auxiliary.files}
    given = source.config
    if (
        given.name == source.path.name
    ):  # correct where it lies, whatever name it is registered under
        given = ModelConfig()
        given.CopyFrom(source.config)
        given.name = source.model
    return complete_config(given, source.model, folder, beside, kind, bare=source.bare)


def _read_config(path: Path) -> ModelConfig | Unservable:
    """Read the config. Raises InvalidArtifact for a link out of the folder, OSError."""
    try:
        content = _read_file(path, path, CONFIG_FILE, MAX_CONFIG)
        return parse_config(content)
    except Unservable as error:
        return error


def _read_probe(source: Source, folder: Path, config: ModelConfig) -> bytes:
    """Return the version's own probe, or else the model's, or b"".

    Raises Unservable, InvalidArtifact, OSError.
    """
    for place in dict.fromkeys((folder, source.path)):
        if os.path.lexists(place / PROBE_FILE):
            content = _read_file(place, source.path, PROBE_FILE, probe.MAX_TEXT)
            return probe.read(content, config)
    return b""


def _read_file(folder: Path, boundary: Path, name: str, limit: int) -> bytes:
    """Read a small file. Raises Unservable, InvalidArtifact (a link out of `boundary`), OSError."""
    found = tree.read(folder, boundary, lambda other: other == name)
    if found.folders:
        raise Unservable(f"{name} is a folder")
    if not found.files:
        raise Unservable(f"{name} disappeared while it was read")
    (file,) = found.files
    if file.size > limit:
        raise Unservable(f"{name} has {file.size} bytes, more than {limit}")
    return Path(file.real).read_bytes()


def _labels(config: ModelConfig | Unservable) -> list[str]:
    return [] if isinstance(config, Unservable) else label_files(config)


def _is_ensemble(config: ModelConfig | Unservable) -> bool:
    return not isinstance(config, Unservable) and is_ensemble(config)


def _is_own(source: Source, name: str) -> bool:
    return name == PROBE_FILE or (source.bare and name == CONFIG_FILE)


def _is_code(relative: str) -> bool:
    return _CODE.fullmatch(relative) is not None


def _is_auxiliary(name: str) -> bool:
    return not (name in _OWN_FILES or name.startswith(".") or _LIKE_A_VERSION.match(name))
