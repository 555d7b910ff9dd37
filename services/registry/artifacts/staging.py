"""The model root that Triton serves: a tree of Shoal's own, never the user's folder.

    <root>/<model>/config.pbtxt     the completed config of the model's newest version
    <root>/<model>/<auxiliary>      links to what lies beside the user's config.pbtxt
    <root>/<model>/<version>/...    real folders; links to the user's files; Python's caches

All versions of a model share the one config.pbtxt on disk though each has a config of its own in
the catalogue. So whoever loads a version gives its config along; the file is for people and tools.

What Triton takes for a change of a *loaded* version shapes this (seen on release 24.10): a new
config.pbtxt and new or removed version folders are none, but anything else that appears or goes
beside config.pbtxt reloads every version of the model, as does a newer time anywhere in a version's
folder. So half-made things live outside of the models' folders, what is right already is not
touched, and Python finds its caches made (bytecode.py). Code in a staged version therefore stays
what it was when it was registered, until the version is registered or imported anew; other files
are links, and Triton sees what is written to them at its next load.
"""

import fcntl
import filecmp
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from services.common.errors import InvalidArtifact
from services.registry.artifacts import bytecode
from services.registry.artifacts.scan import Scan
from services.registry.artifacts.tree import CACHE, File, Tree, shown
from services.registry.core.catalogue import Entry
from services.registry.formats.config import CONFIG_FILE, config_text
from shoal import names

MARKER: Final = ".shoal-staging"
INCOMING: Final = ".incoming"


class NotStaging(Exception):
    """The folder holds what was not staged there, or is in use."""


class Staging:
    """Everything here blocks: call it from threads. One process writes to a root at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._incoming = self.root / INCOMING
        self._making = threading.Lock()
        self._marker: IO[str] | None = None

    def prepare(self) -> None:
        """Makes the root, takes it until `close`, and removes what a crash left half made.

        Raises NotStaging: folders that the catalogue does not know are deleted here, so the root
        must not be somebody else's.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        marker = self.root / MARKER
        if not marker.exists() and any(self.root.iterdir()):
            raise NotStaging(f"{self.root} is not empty and no staging folder: choose another")
        self._marker = marker.open("a")
        try:
            fcntl.flock(self._marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotStaging(f"{self.root} is in use by another Registry") from None
        if self._incoming.exists():
            shutil.rmtree(self._incoming)

    def close(self) -> None:
        """Gives the root back."""
        if self._marker:
            self._marker.close()

    def stage(self, scan: Scan, number: int, others: Collection[str]) -> None:
        """Makes a version's folder and the files beside config.pbtxt what the scan saw.

        `others`: further sources of the model's versions. Raises InvalidArtifact where one of them
        has another auxiliary file of the same name, as all versions would read the one.
        """
        model = self.root / scan.model
        target = model / str(number)
        _check_auxiliary(model, scan, others)
        with self._workspace() as work:
            model.mkdir(exist_ok=True)
            _link_auxiliary(model, scan, others, work)
            if not _is_staged(target, scan.files):
                made = work / "made"
                _fill(made, scan.files, target)
                if target.exists():
                    target.rename(work / "old")
                made.rename(target)

    def write_configs(self, entries: Iterable[Entry]) -> None:
        """Writes each model's config.pbtxt where it is not its newest version's."""
        for entry in entries:
            newest = entry.newest
            path = self.root / entry.name / CONFIG_FILE
            if newest is None or not path.parent.is_dir():
                continue
            text = config_text(newest.config)
            if not path.is_file() or path.read_text() != text:
                with self._workspace() as work:
                    part = work / CONFIG_FILE
                    part.write_text(text)
                    part.replace(path)

    def remove(self, model: str, number: int | None = None) -> None:
        """One version's folder, or all of a model's."""
        path = self.root / model / ("" if number is None else str(number))
        if path.exists():
            with self._workspace() as work:
                path.rename(work / "old")

    def staged(self) -> dict[str, set[int]]:
        """Version numbers by model."""
        models = (path for path in self.root.iterdir() if path.is_dir() and path.name != INCOMING)
        return {
            model.name: {number for path in model.iterdir() if (number := _version(path))}
            for model in models
        }

    @contextmanager
    def _workspace(self) -> Iterator[Path]:
        """A folder on the root's own file system, gone afterwards.

        Triton lists it in its index while it is there; its name cannot be a model's.
        """
        with self._making:
            self._incoming.mkdir(exist_ok=True)
            try:
                yield self._incoming
            finally:
                shutil.rmtree(self._incoming)


def _is_staged(target: Path, files: Tree) -> bool:
    if not target.is_dir() or _links(target) != _wanted_links(files):
        return False
    return all(_is_cached(target, cache, file) for cache, file in _caches(files))


def _wanted_links(files: Tree) -> dict[str, str]:
    return {
        **dict.fromkeys(files.folders, ""),
        **{file.relative: file.real for file in files.files},
    }


def _version(path: Path) -> int | None:
    return names.parse_version(path.name)


def _links(folder: Path) -> dict[str, str]:
    """What a staged folder holds but Python's caches: the target of each link, "" for folders."""
    found: dict[str, str] = {}
    for path in folder.iterdir():
        if path.name == CACHE:
            continue
        if path.is_symlink():
            found[path.name] = str(path.readlink())
        elif path.is_dir():
            inner = _links(path)
            found |= {path.name: "", **{f"{path.name}/{name}": to for name, to in inner.items()}}
        else:
            found[path.name] = "not a link"
    return found


def _caches(files: Tree) -> Iterator[tuple[str, File]]:
    """Where the cache of each Python module belongs, and the module."""
    for file in files.files:
        if cache := bytecode.cache_of(file.relative):
            yield cache, file


def _is_cached(folder: Path, cache: str, file: File) -> bool:
    source = Path(file.real).read_bytes()
    path = folder / cache
    if not path.is_file():
        return bytecode.compiled(source, path) is None
    with path.open("rb") as staged:
        return staged.read(bytecode.HEADER_SIZE) == bytecode.header(source)


def _fill(made: Path, files: Tree, target: Path) -> None:
    """Makes in `made` what will be moved to `target`."""
    made.mkdir()
    for folder in files.folders:
        (made / folder).mkdir()
    for file in files.files:
        (made / file.relative).symlink_to(file.real)
    for cache, file in _caches(files):
        _write_cache(made / cache, file, target / file.relative)


def _write_cache(path: Path, file: File, module: Path) -> None:
    if content := bytecode.compiled(Path(file.real).read_bytes(), module):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def _check_auxiliary(model: Path, scan: Scan, others: Collection[str]) -> None:
    for file in scan.auxiliary.files:
        staged = model / file.relative
        if staged.is_file() and _is_below(staged, others) and not _same(staged, Path(file.real)):
            raise InvalidArtifact(
                path=shown(file.real),
                problem=f"another version of model {scan.model!r} has a different file "
                f"{shown(file.relative)!r} beside its {CONFIG_FILE} ({shown(staged.resolve())}), "
                "and a server has room for one: give it another name, or put it into the version's "
                "folder",
            )


def _link_auxiliary(model: Path, scan: Scan, others: Collection[str], work: Path) -> None:
    """Leaves the links of other sources alone, and drops those of files that are gone."""
    wanted = {file.relative for file in scan.auxiliary.files}
    for relative in _auxiliary_links(model):
        if relative not in wanted and not _is_below(model / relative, others):
            (model / relative).unlink()
    for folder in scan.auxiliary.folders:
        (model / folder).mkdir(exist_ok=True)
    for file in scan.auxiliary.files:
        path = model / file.relative
        if path.is_file() and _is_below(path, others):
            continue
        if not path.is_symlink() or str(path.readlink()) != file.real:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            part = work / "link"
            part.symlink_to(file.real)
            part.replace(path)
    for cache, file in _caches(scan.auxiliary):
        if not _is_cached(model, cache, file):
            _write_cache(model / cache, file, model / file.relative)


def _auxiliary_links(model: Path) -> list[str]:
    kept = [path for path in model.iterdir() if _version(path) is None and path.name != CACHE]
    found = [path.name for path in kept if path.is_symlink()]
    for path in kept:
        if path.is_dir() and not path.is_symlink():
            found.extend(f"{path.name}/{inner}" for inner, target in _links(path).items() if target)
    return found


def _is_below(link: Path, folders: Collection[str]) -> bool:
    target = link.resolve()
    return any(target.is_relative_to(Path(folder).resolve()) for folder in folders)


def _same(one: Path, two: Path) -> bool:
    return one.samefile(two) or filecmp.cmp(one, two, shallow=False)
