"""The folders of versions in the store: links to contents, as a manifest lists them.

    <root>/manifests/<digest>.json   what the folder holds
    <root>/trees/<digest>/...        the folder itself, made in one step, while it is on disk
    <root>/making/...                folders that are being made

A manifest stays when its folder leaves the disk, to say what has to be fetched again. All methods
block.
"""

import contextlib
import itertools
import os
import shutil
from pathlib import Path

from services.registry.artifacts.tree import link
from services.registry.core.manifest import TreeManifest, is_sha256
from services.registry.storage.blobs import Blobs


class Trees:
    """The folders below `root`, which are made of `blobs`."""

    def __init__(self, root: Path, blobs: Blobs) -> None:
        self.blobs = blobs
        self._manifests = root / "manifests"
        self._trees = root / "trees"
        self._making = root / "making"
        self._serial = itertools.count()
        self._read: dict[str, TreeManifest] = {}

    def prepare(self) -> None:
        """Make the folders, and remove what a crash left unfinished."""
        self.blobs.prepare()
        shutil.rmtree(self._making, ignore_errors=True)
        for folder in (self._manifests, self._trees, self._making):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        return self._trees / digest

    def holds(self, path: Path) -> bool:
        """Return whether a path lies in one of the folders."""
        return path.is_relative_to(self._trees)

    def is_present(self, digest: str) -> bool:
        return self.path(digest).is_dir()

    def present(self) -> set[str]:
        """Return the digests of all folders on disk."""
        return {path.name for path in self._trees.iterdir()}

    def manifests(self) -> set[str]:
        """Return the digests of all manifests."""
        found = (path.name.removesuffix(".json") for path in self._manifests.glob("*.json"))
        return {digest for digest in found if is_sha256(digest)}

    def manifest(self, digest: str) -> TreeManifest | None:
        """Return a manifest, or None if it is not here or not whole."""
        if digest not in self._read:
            with contextlib.suppress(OSError, ValueError):
                manifest = TreeManifest.read((self._manifests / f"{digest}.json").read_bytes())
                if manifest.digest == digest:
                    self._read[digest] = manifest
        return self._read.get(digest)

    def note(self, manifest: TreeManifest) -> None:
        """Keep a manifest."""
        path = self._manifests / f"{manifest.digest}.json"
        if self.manifest(manifest.digest) is not None:
            os.utime(path)
            return
        part = self._making / f"manifest-{next(self._serial)}"
        with part.open("wb") as file:
            file.write(manifest.text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        self._read[manifest.digest] = manifest

    def age(self, digest: str, now: float) -> float:
        """Return the seconds since a manifest was noted; `now` counts from 1970."""
        try:
            return now - (self._manifests / f"{digest}.json").stat().st_mtime
        except OSError:
            return 0.0

    def make(self, manifest: TreeManifest) -> Path:
        """Make the folder of a manifest, all of whose contents are here, and return it."""
        target = self.path(manifest.digest)
        if target.is_dir():
            return target
        self.note(manifest)
        made = self._making / f"tree-{next(self._serial)}"
        made.mkdir()
        for item in manifest.items:
            path = made / item.path
            path.parent.mkdir(parents=True, exist_ok=True)
            link(self.blobs.path(item.sha256), path)
        try:
            made.rename(target)
        except OSError:
            shutil.rmtree(made)
            if not target.is_dir():  # somebody else has made it meanwhile
                raise
        return target

    def remove(self, digest: str) -> None:
        """Remove the folder of a manifest; the manifest stays."""
        target = self.path(digest)
        if target.is_dir():
            gone = self._making / f"gone-{next(self._serial)}"
            target.rename(gone)
            shutil.rmtree(gone)

    def forget(self, digest: str) -> None:
        """Remove a manifest and its folder."""
        self.remove(digest)
        self._read.pop(digest, None)
        (self._manifests / f"{digest}.json").unlink(missing_ok=True)
