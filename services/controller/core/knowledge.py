"""The part of the catalogue that the engine knows: the units, and what is made of what."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from services.controller.core import memory
from services.controller.core.entities import Unit, UnitSpec
from services.controller.core.memory import Memory
from services.controller.core.ranking import RELOAD_SECONDS


class Knowledge:
    """The specs of all units, and indexes of them."""

    __slots__ = ("kept", "own_ttl", "pinned", "preload", "specs", "users", "versions")

    def __init__(self) -> None:
        #: What the Registry says of each unit.
        self.specs: dict[Unit, UnitSpec] = {}
        #: The units of each model.
        self.versions: dict[str, tuple[Unit, ...]] = {}
        #: The units that require a unit, which need not be known itself.
        self.users: dict[Unit, set[Unit]] = {}
        #: Units of which a number of replicas is kept whether they are used or not.
        self.kept: set[Unit] = set()
        #: Units that are never evicted for another.
        self.pinned: set[Unit] = set()
        #: Units with an idle TTL of their own, which is not zero.
        self.own_ttl: set[Unit] = set()
        #: Units to load at the start that have not had their turn yet.
        self.preload: set[Unit] = set()

    def replace_versions(self, models: Iterable[str], fresh: Mapping[Unit, object]) -> list[Unit]:
        """List the units in `fresh` as all that there are of `models`. Returns those that are gone;
        they are known until they are removed."""
        gone = [
            unit for model in models for unit in self.versions.pop(model, ()) if unit not in fresh
        ]
        for unit in fresh:
            self.versions[unit.model] = (*self.versions.get(unit.model, ()), unit)
        return gone

    def put(self, spec: UnitSpec) -> None:
        unit = spec.unit
        known = self.specs.get(unit)
        if known is not None:
            self._unlink(known)
        self.specs[unit] = spec
        for part in spec.requires:
            self.users.setdefault(part, set()).add(unit)
        (self.pinned.add if spec.pinned else self.pinned.discard)(unit)
        (self.kept.add if spec.kept else self.kept.discard)(unit)
        (self.own_ttl.add if spec.idle_ttl else self.own_ttl.discard)(unit)
        if spec.preload and not (known is not None and known.preload):
            self.preload.add(unit)

    def remove(self, unit: Unit) -> None:
        self._unlink(self.specs.pop(unit))
        for index in (self.pinned, self.kept, self.own_ttl, self.preload):
            index.discard(unit)

    def _unlink(self, spec: UnitSpec) -> None:
        for part in spec.requires:
            users = self.users.get(part)
            if users is not None:
                users.discard(spec.unit)
                if not users:
                    del self.users[part]

    def take_preload(self) -> list[Unit]:
        """The units to load at the start, in order. They are not returned again."""
        taken = sorted(self.preload)
        self.preload.clear()
        return taken

    # --- what is made of what ---------------------------------------------------------------------

    def group(self, spec: UnitSpec) -> tuple[UnitSpec, ...]:
        """The unit and everything that it requires, parts first, each once. Parts that are not
        known are left out."""
        if not spec.requires:
            return (spec,)
        found: dict[Unit, UnitSpec] = {}
        seen: set[Unit] = set()

        def visit(member: UnitSpec) -> None:
            seen.add(member.unit)
            for part in member.requires:
                if part not in seen and part in self.specs:
                    visit(self.specs[part])
            found[member.unit] = member

        visit(spec)
        return tuple(found.values())

    def with_users(self, unit: Unit) -> set[Unit]:
        """The unit and every unit that requires it, directly or through others."""
        found = {unit}
        if unit not in self.users:
            return found
        open_ = [unit]
        while open_:
            for user in self.users.get(open_.pop(), ()):
                if user not in found:
                    found.add(user)
                    open_.append(user)
        return found

    # --- what is learned --------------------------------------------------------------------------

    def reload_seconds(self, unit: Unit) -> float:
        """How long a load takes; a guess until one has been seen."""
        spec = self.specs.get(unit)
        known = spec.load_seconds if spec is not None else None
        return RELOAD_SECONDS if known is None else known

    def size_known(self, unit: Unit) -> bool:
        """Return whether it is known what `unit` takes; what is not in the catalogue takes what it
        has."""
        return unit not in self.specs or self.specs[unit].size_known

    def learn_memory(self, unit: Unit, measured: Memory) -> UnitSpec | None:
        """Remember the largest size seen. Returns the new spec, or None where it says the same."""
        spec = self.specs.get(unit)
        if spec is None or spec.ensemble:
            return None
        learned = memory.highest(spec.learned, measured)
        return self._learn(replace(spec, learned=learned)) if learned != spec.learned else None

    def learn_load(self, unit: Unit, seconds: float) -> UnitSpec | None:
        """Remember how long a load takes. A quicker load counts at once; a slower one, which may
        have had to share the machine, moves what is expected by a third. Returns the new spec, or
        None where it says the same."""
        spec = self.specs.get(unit)
        if spec is None or spec.ensemble:
            return None
        known = spec.load_seconds
        if known is not None and seconds > known:
            seconds = known + (seconds - known) / 3
        return self._learn(replace(spec, load_seconds=seconds)) if seconds != known else None

    def _learn(self, spec: UnitSpec) -> UnitSpec:
        self.specs[spec.unit] = spec
        return spec
