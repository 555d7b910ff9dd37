"""The repositories that the Registry knows, and what could not be imported from each."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from services.registry.artifacts.repository import Problem
from services.registry.artifacts.tree import exists, is_folder, shown
from services.registry.catalogue.store import Store
from services.registry.core.catalogue import Entry, Version
from services.registry.storage.trees import Trees
from shoal import names

# Problems that are kept of one repository. An import returns all of them.
MAX_KEPT: Final = 1000


class Repositories:
    """The repositories that were imported: `named` by the operator, or over the API.

    Links in the first may lead into `link_roots`; links in the others stay in their repository.
    """

    def __init__(
        self, store: Store, named: Iterable[Path], link_roots: Iterable[Path], trees: Trees
    ) -> None:
        self._store = store
        self._trees = trees
        self._named = frozenset(named)
        self._link_roots = tuple(link_roots)
        self._problems: dict[Path, list[Problem]] = {path: [] for path in self._named}
        self._stored: dict[Path, list[Problem]] = {}  # as the database has them

    async def load(self) -> None:
        """Read what earlier imports have left in the database, except for folders now gone."""
        for text, problems in (await self._store.repositories()).items():
            path = Path(text)
            if path in self._named or is_folder(path):
                self._stored[path] = [Problem(*problem) for problem in problems]
        self._problems |= self._stored

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted(self._problems))

    def fence(self, source: Path) -> tuple[Path, ...]:
        """Return the folders that links below a version's source may lead into."""
        if self._trees.holds(source):
            return (source, self._trees.blobs.folder)
        repository = self.of(source)
        if repository is None:
            return (source,)
        return self.fence_of_repository(repository)

    def fence_of_repository(self, repository: Path) -> tuple[Path, ...]:
        """Return the folders that links in a repository may lead into."""
        return (repository, *(self._link_roots if repository in self._named else ()))

    def of(self, source: Path) -> Path | None:
        """Return the repository that a source lies in, or None."""
        near = [path for path in (source.parent, source) if path in self._problems]
        return next((path for path in near if path in self._named), next(iter(near), None))

    def duplicate(self, versions: Iterable[Version], source: Path) -> str:
        """Return why a model found at `source` is not the one that is registered, or "".

        The versions of a model come from one repository.
        """
        here = self.of(source)
        for version in versions:
            other = Path(version.source)
            there = self.of(other)
            if there is None or there == here or not exists(other):
                continue
            if other.resolve() != source.resolve():
                return (
                    f"{names.model_name(version.model)} is already registered from "
                    f"{version.source}, and the versions of a model come from one repository: "
                    "rename one of the two folders"
                )
        return ""

    def folders(self, model: str, entry: Entry | None) -> list[tuple[Path, Path]]:
        """Return the folders that a model may be in, each after its repository."""
        sources = {version.source for version in entry.versions.values()} if entry else set()
        places = [
            *((repository, repository / model) for repository in self),
            *((repository, repository) for repository in self if str(repository) in sources),
        ]
        return [(repository, folder) for repository, folder in places if is_folder(folder)]

    def add(self, repository: Path) -> None:
        """Note that a repository is known, in memory only."""
        self._problems.setdefault(repository, [])

    async def keep(self, repository: Path, problems: Sequence[Problem]) -> None:
        """Note what could not be imported from a repository, in place of what was noted before."""
        kept = list(problems[:MAX_KEPT])
        self._problems[repository] = kept
        if self._stored.get(repository) == kept:
            return
        await self._store.put_repository(
            str(repository), [(problem.path, problem.reason) for problem in kept]
        )
        self._stored[repository] = kept

    async def amend(self, repository: Path, folder: Path, problems: Sequence[Problem]) -> None:
        """Note what could not be imported from one folder of a repository."""
        inside = f"{shown(folder)}/"
        others = [one for one in self.problems(repository) if not f"{one.path}/".startswith(inside)]
        await self.keep(repository, [*others, *problems])

    def problems(self, repository: Path) -> list[Problem]:
        """Return what could not be imported from a repository in its last import."""
        return self._problems.get(repository, [])

    def everything(self) -> Iterator[tuple[Path, int, Problem]]:
        """Yield all problems, each after its repository and its place there, in that order."""
        for repository in self:
            for index, problem in enumerate(self._problems[repository]):
                yield repository, index, problem
