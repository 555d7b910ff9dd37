"""The versions whose configs a server must complete, in the order in which they should be."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.registry.core.catalogue import Entry, Version, VersionState
from shoal.names import ModelVersionName


@dataclass
class Queue:
    """The versions that wait: first those that somebody asks for, then all others by name."""

    _waiting: dict[str, frozenset[ModelVersionName]] = field(default_factory=dict)
    _asked: dict[ModelVersionName, None] = field(default_factory=dict)

    def replace(self, entries: Mapping[str, Entry | None]) -> bool:
        """Take in changed entries, None for a deleted model.

        Returns whether the order changes, or a version that waits does.
        """
        before = self._waiting.keys() & entries.keys()
        for model, entry in entries.items():
            found = entry.versions.values() if entry is not None else ()
            waiting = frozenset(map(_name, filter(must_be_completed, found)))
            if waiting:
                self._waiting[model] = waiting
            else:
                self._waiting.pop(model, None)
        self._asked = {name: None for name in self._asked if self._waits(name)}
        return bool(before or self._waiting.keys() & entries.keys())

    def successor(self, entries: Mapping[str, Entry]) -> "Queue":
        """Return the queue of a whole catalogue, in which the same versions are asked for."""
        queue = Queue(_asked=dict(self._asked))
        queue.replace(entries)
        return queue

    def ask(self, name: ModelVersionName) -> bool:
        """Note that somebody asks for a version; return whether the order changes."""
        if name in self._asked or not self._waits(name):
            return False
        self._asked[name] = None
        return True

    @property
    def requested(self) -> int:
        """Return how many versions, from the first, somebody asks for."""
        return len(self._asked)

    def order(self) -> tuple[ModelVersionName, ...]:
        others = {name for names in self._waiting.values() for name in names} - self._asked.keys()
        return (*self._asked, *sorted(others))

    def _waits(self, name: ModelVersionName) -> bool:
        return name in self._waiting.get(name.model, ())


def must_be_completed(version: Version) -> bool:
    """Return whether a version waits for its own config, not only for its parts'."""
    return version.state is VersionState.WAITING and bool(version.incomplete)


def _name(version: Version) -> ModelVersionName:
    return ModelVersionName(version.model, version.number)
