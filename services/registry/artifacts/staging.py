"""The model root that Triton serves: a tree that Shoal owns, never a user's folder.

    <root>/<model>/config.pbtxt     the completed config of the model's newest version
    <root>/<model>/<auxiliary>      links to the files beside the user's config.pbtxt
    <root>/<model>/<version>/...    real folders; links to the files; Python's caches

Links to a user's files are symbolic, because a hard link to a file that is replaced later would
keep the old one. Those to files in the store are hard links, which also work for a server that sees
this tree and not the store. They are symbolic where the file system has no others.

All versions of a model share the one config.pbtxt on disk, although each has its own config in the
catalogue. So whoever loads a version sends its config along, and the file is for people and tools.

The layout follows from what Triton takes for a change of a *loaded* version (observed on release
24.10). A new config.pbtxt and new or removed version folders do not count. Anything else that
appears or disappears beside config.pbtxt reloads every version of the model, and so does a newer
time anywhere in a version's folder. Therefore unfinished files live outside the models' folders,
what is already right is not touched, and Python finds its caches in place (bytecode.py). As a
result, code in a staged version stays as it was registered until the version is registered or
imported again. Other files are links, and Triton sees changes to them at its next load.
"""

import fcntl
import filecmp
import itertools
import os
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from services.registry.artifacts import bytecode
from services.registry.artifacts.scan import Scan
from services.registry.artifacts.tree import CACHE, File, Tree, link, shown
from services.registry.core.catalogue import Entry
from services.registry.core.errors import InvalidArtifact
from services.registry.formats.config import CONFIG_FILE, config_text
from shoal import names

MARKER: Final = ".shoal-staging"
INCOMING: Final = ".incoming"


class NotStaging(Exception):
    """The folder contains files that were not staged there, or is in use."""


class Staging:
    """The staging tree, owned by one process at a time. Methods block: call them from threads."""

    def __init__(self, root: Path, store: Path | None = None) -> None:
        self.root = root.absolute()
        self._store = os.path.realpath(store) + os.sep if store else None
        self._incoming = self.root / INCOMING
        self._making = threading.Lock()
        self._workspaces = 0  # in use
        self._serial = itertools.count()
        self._marker: IO[str] | None = None

    def prepare(self) -> None:
        """Make the root, own it until `close`, and remove what a crash left unfinished.

        Raises NotStaging, because unknown folders are deleted here: the root must not be somebody
        else's folder.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        marker = self.root / MARKER
        if not marker.exists() and any(self.root.iterdir()):
            raise NotStaging(f"{self.root} is neither empty nor a staging folder: choose another")
        self._marker = marker.open("a")
        try:
            fcntl.flock(self._marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotStaging(f"{self.root} is in use by another Registry") from None
        if self._incoming.exists():
            shutil.rmtree(self._incoming)

    def close(self) -> None:
        """Release the root."""
        if self._marker:
            self._marker.close()

    def stage(self, scan: Scan, number: int, others: Collection[str]) -> None:
        """Make a version's folder, and the files beside config.pbtxt, match the scan.

        `others` are the sources of the model's other versions. Raises InvalidArtifact if one of
        them has a different auxiliary file of the same name, because all versions would share it.
        """
        model = self.root / scan.model
        target = model / str(number)
        _check_auxiliary(model, scan, others)
        with self._workspace() as work:
            model.mkdir(exist_ok=True)
            self._link_auxiliary(model, scan, others, work)
            if not self._is_staged(target, scan.files):
                made = work / "made"
                self._fill(made, scan.files, target)
                if target.exists():
                    target.rename(work / "old")
                made.rename(target)

    def write_configs(self, entries: Iterable[Entry]) -> None:
        """Write the config.pbtxt of each model whose newest version has another one."""
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
        """Remove one version's folder, or the whole model's."""
        path = self.root / model / ("" if number is None else str(number))
        if path.exists():
            with self._workspace() as work:
                path.rename(work / "old")

    def leave(self, model: str, number: int, others: Collection[str]) -> None:
        """Remove a version's folder, and what nothing else needs beside it.

        `others` are the sources of the model's other versions.
        """
        self.remove(model, number)
        folder = self.root / model
        if not folder.is_dir():
            return
        if not any(map(_version, folder.iterdir())):
            self.remove(model)
            return
        for relative in _auxiliary_links(folder):
            if not _is_from(folder, relative, others):
                (folder / relative).unlink()

    def staged(self) -> dict[str, set[int]]:
        """Return the staged version numbers by model."""
        models = (path for path in self.root.iterdir() if path.is_dir() and path.name != INCOMING)
        return {
            model.name: {number for path in model.iterdir() if (number := _version(path))}
            for model in models
        }

    def is_staged(self, model: str, number: int) -> bool:
        """Return whether a version has a folder here."""
        return (self.root / model / str(number)).is_dir()

    @contextmanager
    def _workspace(self) -> Iterator[Path]:
        """Provide a folder on the root's own file system, and remove it afterwards.

        Triton's index lists the folder that it lies in meanwhile, under a name that no model can
        have.
        """
        with self._making:
            self._incoming.mkdir(exist_ok=True)
            self._workspaces += 1
            work = self._incoming / str(next(self._serial))
            work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work)
            with self._making:
                self._workspaces -= 1
                if not self._workspaces:
                    self._incoming.rmdir()

    def _is_staged(self, target: Path, files: Tree) -> bool:
        if not target.is_dir():
            return False
        links = _links(target)
        if links.keys() != {*files.folders, *(file.relative for file in files.files)}:
            return False
        return (
            all(links[folder] == "" for folder in files.folders)
            and all(self._leads_to(links[file.relative], file) for file in files.files)
            and all(_is_cached(target, cache, file) for cache, file in _caches(files))
        )

    def _leads_to(self, link: str, file: File) -> bool:
        """Return whether a link, as `_link` gives it, is one to the file."""
        return link == file.real or (self._is_stored(file) and link == _identity(Path(file.real)))

    def _is_stored(self, file: File) -> bool:
        return self._store is not None and file.real.startswith(self._store)

    def _place(self, path: Path, file: File) -> None:
        if self._is_stored(file):
            link(Path(file.real), path)
        else:
            path.symlink_to(file.real)

    def _fill(self, made: Path, files: Tree, target: Path) -> None:
        """Fill `made`, which will be moved to `target`."""
        made.mkdir()
        for folder in files.folders:
            (made / folder).mkdir()
        for file in files.files:
            self._place(made / file.relative, file)
        for cache, file in _caches(files):
            _write_cache(made / cache, file, target / file.relative)

    def _link_auxiliary(self, model: Path, scan: Scan, others: Collection[str], work: Path) -> None:
        """Link auxiliary files, keep those of other sources, and drop those of files now gone."""
        wanted = {file.relative for file in scan.auxiliary.files}
        for relative in _auxiliary_links(model):
            if relative not in wanted and not _is_from(model, relative, others):
                (model / relative).unlink()
        for folder in scan.auxiliary.folders:
            (model / folder).mkdir(exist_ok=True)
        for file in scan.auxiliary.files:
            path = model / file.relative
            if path.is_file() and _is_from(model, file.relative, others):
                continue
            if not os.path.lexists(path) or not self._leads_to(_link(path), file):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                part = work / "link"
                self._place(part, file)
                part.replace(path)
        for cache, file in _caches(scan.auxiliary):
            if not _is_cached(model, cache, file):
                _write_cache(model / cache, file, model / file.relative)


def _version(path: Path) -> int | None:
    return names.parse_version(path.name)


def _links(folder: Path) -> dict[str, str]:
    """Return each link in a staged folder, as `_link` gives it, without caches."""
    found: dict[str, str] = {}
    for path in folder.iterdir():
        if path.name == CACHE:
            continue
        found[path.name] = _link(path)
        if not found[path.name]:
            found |= {f"{path.name}/{name}": to for name, to in _links(path).items()}
    return found


def _link(path: Path) -> str:
    """Return where a symbolic link leads, "" for a folder, else which file it is."""
    if path.is_symlink():
        return str(path.readlink())
    return "" if path.is_dir() else _identity(path)


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{status.st_dev}:{status.st_ino}"


def _caches(files: Tree) -> Iterator[tuple[str, File]]:
    """Yield each Python module, after the place of its cache."""
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


def _write_cache(path: Path, file: File, module: Path) -> None:
    if content := bytecode.compiled(Path(file.real).read_bytes(), module):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def _check_auxiliary(model: Path, scan: Scan, others: Collection[str]) -> None:
    for file in scan.auxiliary.files:
        staged = model / file.relative
        mine = not staged.is_file() or not _is_from(model, file.relative, others)
        if not mine and not _same(staged, Path(file.real)):
            raise InvalidArtifact(
                path=shown(file.real),
                problem=f"another version of model {scan.model!r} has a different file "
                f"{shown(file.relative)!r} beside its {CONFIG_FILE} ({shown(staged.resolve())}), "
                "and all versions share it on a server: rename it, or move it into the version's "
                "folder",
            )


def _auxiliary_links(model: Path) -> list[str]:
    kept = [path for path in model.iterdir() if _version(path) is None and path.name != CACHE]
    found = [path.name for path in kept if path.name != CONFIG_FILE and _link(path)]
    for path in kept:
        if path.is_dir() and not path.is_symlink():
            found.extend(f"{path.name}/{inner}" for inner, target in _links(path).items() if target)
    return found


def _is_from(model: Path, relative: str, folders: Collection[str]) -> bool:
    """Return whether a file beside the versions is one in these folders."""
    staged = model / relative
    if staged.is_symlink():
        target = staged.resolve()
        return any(target.is_relative_to(Path(folder).resolve()) for folder in folders)
    return any(
        (Path(folder) / relative).is_file() and staged.samefile(Path(folder) / relative)
        for folder in folders
    )


def _same(one: Path, two: Path) -> bool:
    return one.samefile(two) or filecmp.cmp(one, two, shallow=False)
