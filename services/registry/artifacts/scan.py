"""Models on disk: one model's folder, or one version's content.

A folder that contains a numbered folder is a model's. Any other is the bare content of a version,
whose config.pbtxt, if it has one, lies among the files. Everything here only reads.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelVersionPolicy

from services.registry.artifacts import probe, tree
from services.registry.artifacts.probe import PROBE_FILE
from services.registry.artifacts.tree import File, Tree, shown
from services.registry.core.catalogue import Part, PartSource
from services.registry.core.errors import InvalidArtifact
from services.registry.core.manifest import is_sha256
from services.registry.formats.calls import calls
from services.registry.formats.completion import METHOD, incomplete, merged
from services.registry.formats.config import (
    BACKENDS,
    CONFIG_FILE,
    REQUIRES,
    check_complete,
    config_digest,
    drafted_config,
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
MAX_CODE: Final = 2**20  # bytes of a Python file that is read for what it calls
MAX_NAMED: Final = 16  # models that a version's code names

# Triton takes any name that begins like a number for a version, and its loader hangs on a negative
# one.
LIKE_A_VERSION = re.compile(r"\s*[+-]?[0-9]")

# Files beside a model that Triton runs instead of the backend that the config names.
_CODE = re.compile(r"model\.py|libtriton_.*\.so|batchstrategy\.so|triton_python_backend_stub")

# Files that say how a version is served, and are not served themselves.
_OWN_FILES: Final = frozenset({CONFIG_FILE, PROBE_FILE})

MODEL_FILES: Final = frozenset(filename for _, _, filename in BACKENDS)


# The folders that links below a source may lead into.
Fence = Callable[[Path], tuple[Path, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What one version's files say; with a `problem` they cannot be served.

    `probe` is a serialized inference.ModelInferRequest, or empty. `incomplete` is why a server must
    complete the config first, or "". If one has, `scanned` is the fingerprint of what it completed.
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
    incomplete: str = ""
    scanned: str = ""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with versions of a model.

    `numbers` are its versions, and `strays` the folders that only look like versions. A `bare`
    source is the content of one version, whose number is 0 if the folder's name does not tell.
    `auxiliary` are the files beside config.pbtxt. Links may lead into the folders of `within`.
    `folders` are all versions in the model's folder, where only some are asked for.
    """

    model: str
    path: Path
    numbers: tuple[int, ...]
    bare: bool
    config: ModelConfig | Unservable
    auxiliary: Tree
    within: tuple[Path, ...]
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


def open_source(path: Path, model: str, within: tuple[Path, ...] = ()) -> ModelFolder:
    """Look into a model's folder, or a version's content. Raises InvalidArtifact.

    Links may lead into the folders of `within`; without any, they must stay in `path`.
    """
    within = within or (path,)
    try:
        folders = {entry.name: tree.is_folder(entry) for entry in os.scandir(path)}
        config = _read_config(path, within) if CONFIG_FILE in folders else ModelConfig()
    except OSError as error:
        raise tree.unreadable(path, error) from None
    numeric = [name for name, folder in folders.items() if folder and LIKE_A_VERSION.match(name)]
    found = {name: names.parse_version(name) for name in numeric}
    numbers = tuple(sorted(number for number in found.values() if number))
    strays = tuple(sorted(name for name, number in found.items() if not number))
    labels = _labels(config)
    if not numbers and _is_ensemble(config) and folders.keys() <= {*_OWN_FILES, *labels}:
        # An ensemble's version folder is empty, and Git does not keep empty folders.
        numbers = (1,)
    if numbers:
        auxiliary = tree.read(path, within, _is_auxiliary)
        return ModelFolder(model, path, numbers, False, config, auxiliary, within, strays)
    auxiliary = tree.read(path, within, lambda name: name in labels)
    number = names.parse_version(path.name) or 0
    return ModelFolder(model, path, (number,), True, config, auxiliary, within)


def open_registered(path: Path, model: str, number: int, fence: Fence) -> ModelFolder:
    """Look into what is to be registered as version `number` (0: any). Raises InvalidArtifact.

    A numbered folder inside a model's folder is that version of the model.
    """
    own = names.parse_version(path.name)
    inside = own is not None and number in (0, own) and (path.parent / CONFIG_FILE).is_file()
    if own is None or not inside or not path.is_dir():
        return open_source(path, model, fence(path))
    source = open_source(path.parent, model, fence(path.parent))
    return replace(source, numbers=(own,), bare=False, strays=(), folders=source.numbers)


def scan_version(source: ModelFolder, number: int, kind: str, completed: bytes = b"") -> Scan:
    """Scan one version of `source`. `kind` is the instance kind if its config gives none.

    `completed` is the config as a server has completed it, if it was asked. Raises InvalidArtifact
    if the version's files are not safe to serve or cannot be read.
    """
    folder = source.folder(number)
    config, parts, asked, problem = b"", tuple[Part, ...](), b"", ""
    files, auxiliary, reason, said = Tree(), source.auxiliary, "", b""
    try:
        if left_out := source.left_out(number):
            raise Unservable(left_out)
        exists = folder.is_dir()
        if not exists and not _is_ensemble(source.config):
            raise InvalidArtifact(path=shown(folder), problem="its folder is gone")
        if exists:
            files = tree.read(folder, source.within, lambda name: not _is_own(source, name))
        _check_links(source.config, files, auxiliary)
        complete = _drafted(source, folder if exists else None, kind)
        has_code = complete.backend == "python"
        reason = incomplete(
            complete, asks_code=has_code and _asks_code((*files.files, *auxiliary.files))
        )
        if reason:
            said = serialize(complete) + _probe_text(source, folder)
        if completed and reason:
            complete, reason = merged(complete, completed), ""
        if not reason:
            check_complete(complete, {file.relative for file in auxiliary.files})
        _check_links(complete, files, auxiliary)
        if not runs_own_code(complete):
            files, auxiliary = tree.without(files, _is_code), tree.without(auxiliary, _is_code)
        parts = (*parts_of(complete), *_called(complete, files))
        asked = b"" if reason else _read_probe(source, folder, complete)
        config = serialize(complete)
    except Unservable as error:
        problem = str(error)
    except OSError as error:
        raise tree.unreadable(folder, error) from None
    auxiliary_digest = _digest(auxiliary, source.path)
    digests = f"{auxiliary_digest} {tree.stat_digest(files)}"
    if said and completed:
        scanned = _fingerprint(said, f"{digests} ")
        fingerprint = _fingerprint(config, f"{scanned} {problem}", asked)
    else:
        scanned = ""
        fingerprint = _fingerprint(said or config, f"{digests} {problem}", asked)
    return Scan(
        model=source.model,
        source=str(source.path),
        files=files,
        auxiliary=auxiliary,
        config=config,
        config_digest=config_digest(config, auxiliary_digest) if config else "",
        auxiliary_digest=auxiliary_digest,
        fingerprint=fingerprint,
        ensemble=_is_ensemble(source.config),
        parts=parts,
        probe=asked,
        problem=problem,
        incomplete=reason,
        scanned=scanned,
    )


def _fingerprint(config: bytes, files: str, probe: bytes = b"") -> str:
    return hashlib.sha256(config + b"\0" + files.encode() + probe).hexdigest()


def _asks_code(files: Iterable[File]) -> bool:
    """Return whether a server that completes configs asks the version's Python code. Raises
    OSError."""
    return any(
        METHOD.encode() in Path(file.real).read_bytes()
        for file in files
        if file.relative.endswith(".py") and file.size <= MAX_CODE
    )


def _called(config: ModelConfig, files: Tree) -> tuple[Part, ...]:
    """Return the models that a Python model's code names, unless its config says what it calls.

    Raises OSError.
    """
    if config.backend != "python" or REQUIRES in config.parameters:
        return ()
    found: dict[Part, None] = {}
    for file in files.files:
        if file.relative.endswith(".py") and file.size <= MAX_CODE:
            for model, version in calls(Path(file.real).read_text(errors="replace")):
                if names.is_model_name(model) and model != config.name:
                    found[Part(model, version, version, PartSource.CODE)] = None
    return tuple(found)[:MAX_NAMED]


def _digest(auxiliary: Tree, path: Path) -> str:
    try:
        return tree.content_digest(auxiliary)
    except OSError as error:
        raise tree.unreadable(path, error) from None


def _drafted(source: ModelFolder, folder: Path | None, kind: str) -> ModelConfig:
    """Raises Unservable, OSError."""
    if isinstance(source.config, Unservable):
        raise source.config
    beside = {file.relative for file in source.auxiliary.files}
    given = source.config
    # A name that is correct where the model lies may differ from the one it is registered under. A
    # folder in the store has no name of its own.
    if given.name == source.path.name or is_sha256(source.path.name):
        given = ModelConfig()
        given.CopyFrom(source.config)
        given.name = source.model
    return drafted_config(given, source.model, folder, beside, kind, bare=source.bare)


def _check_links(config: ModelConfig | Unservable, files: Tree, auxiliary: Tree) -> None:
    """Raises Unservable if a file that the config names is a link to nothing."""
    if isinstance(config, Unservable):
        return
    beside, inside = dict(auxiliary.dangling), dict(files.dangling)
    for name in (config.default_model_filename, *config.cc_model_filenames.values()):
        top = name.partition("/")[0]
        if target := inside.get(name) or inside.get(top):
            raise _link_to_nothing(name, target)
    for name in label_files(config):
        if target := beside.get(name):
            raise _link_to_nothing(name, target)


def _link_to_nothing(name: str, target: str) -> Unservable:
    return Unservable(f"{name} is a link to {shown(target)}, which does not exist")


def _read_config(path: Path, within: Iterable[Path]) -> ModelConfig | Unservable:
    """Read the config. Raises InvalidArtifact for a link that leads out, OSError."""
    try:
        content = _read_file(path, within, CONFIG_FILE, MAX_CONFIG)
        return parse_config(content)
    except Unservable as error:
        return error


def _read_probe(source: ModelFolder, folder: Path, config: ModelConfig) -> bytes:
    """Return the version's own probe, or else the model's, or b"".

    Raises Unservable, InvalidArtifact, OSError.
    """
    content = _probe_text(source, folder)
    return probe.read(content, config) if content else b""


def _probe_text(source: ModelFolder, folder: Path) -> bytes:
    for place in dict.fromkeys((folder, source.path)):
        if os.path.lexists(place / PROBE_FILE):
            return _read_file(place, source.within, PROBE_FILE, probe.MAX_TEXT) or b" "
    return b""


def _read_file(folder: Path, within: Iterable[Path], name: str, limit: int) -> bytes:
    """Read a small file. Raises Unservable, InvalidArtifact (a link that leads out), OSError."""
    found = tree.read(folder, within, lambda other: other == name)
    for link, target in found.dangling:
        raise _link_to_nothing(link, target)
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


def _is_own(source: ModelFolder, name: str) -> bool:
    return name == PROBE_FILE or (source.bare and name == CONFIG_FILE)


def _is_code(relative: str) -> bool:
    return _CODE.fullmatch(relative) is not None


def _is_auxiliary(name: str) -> bool:
    return not (name in _OWN_FILES or name.startswith(".") or LIKE_A_VERSION.match(name))
