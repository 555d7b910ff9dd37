"""The meaning of resource names: models and versions, as the catalogue has them."""

from services.common.errors import (
    InvalidName,
    ModelNotFound,
    NoApprovedVersion,
    NotServable,
    ShoalError,
    VersionNotFound,
)
from services.controller.core.entities import Unit
from services.controller.core.view import FleetView
from services.controller.registry.catalogue import ANSWERABLE, INVALID, Catalogue, unit_of
from shoal.names import parse_model_name, parse_version_name
from shoal.registry.v1 import types_pb2 as registry


def parse_name(name: str) -> tuple[str, int | None]:
    """Return the model that a resource name means, and its version where it means one.

    Raises InvalidName.
    """
    model = parse_model_name(name)
    if model is not None:
        return model, None
    version = parse_version_name(name)
    if version is None:
        raise InvalidName("name", name)
    return version.model, version.version


class Names:
    """The meaning of names in one Controller's catalogue."""

    def __init__(self, catalogue: Catalogue, view: FleetView) -> None:
        self._catalogue = catalogue
        self._view = view

    def one(self, name: str) -> Unit:
        """Return the unit that a name means: of a model, its default version.

        A version need not be registered. Raises InvalidName, ModelNotFound, NoApprovedVersion, and
        NotServable for a model of which no version can be served.
        """
        model, version = parse_name(name)
        if version is not None:
            return Unit(model, version)
        entry = self._catalogue.entries.get(model)
        if entry is None:
            raise ModelNotFound(model=model)
        if not entry.model.default_version:
            broken = max(map(unit_of, filter(_is_invalid, entry.versions)), default=None)
            if broken is not None and not self._has_answerable(model):
                raise self.not_found(broken)
            raise NoApprovedVersion(model=model, versions=self._answerable(model))
        return Unit(model, entry.model.default_version)

    def all(self, name: str) -> list[Unit]:
        """Return the units that a name means: of a model, all its versions that can be loaded.

        Raises InvalidName, ModelNotFound, VersionNotFound.
        """
        model, version = parse_name(name)
        if model not in self._catalogue.entries:
            raise ModelNotFound(model=model)
        if version is None:
            return self._view.units_of(model)
        unit = Unit(model, version)
        if self._catalogue.version(unit) is None:
            raise self.not_found(unit)
        return [unit]

    def known(self, unit: Unit) -> registry.ModelVersion | None:
        """Return what the Registry says of the unit; None where only the engine still knows it.

        Raises ModelNotFound, VersionNotFound.
        """
        version = self._catalogue.version(unit)
        if version is not None or self._view.is_loadable(unit):
            return version
        entry = self._catalogue.entries.get(unit.model)
        if entry is None:
            raise ModelNotFound(model=unit.model)
        versions = ", ".join(str(unit_of(known).version) for known in entry.versions)
        raise VersionNotFound(model=unit.model, version=unit.version, versions=versions or "none")

    def not_found(self, unit: Unit) -> ShoalError:
        """Return the error that says what does not exist, or why it cannot be served."""
        if unit.model not in self._catalogue.entries:
            return ModelNotFound(model=unit.model)
        version = self._catalogue.version(unit)
        if version is not None and _is_invalid(version):
            return NotServable(
                model=unit.model, version=unit.version, problem=version.invalid_reason
            )
        return VersionNotFound(
            model=unit.model, version=unit.version, versions=self._answerable(unit.model)
        )

    def _answerable(self, model: str) -> str:
        entry = self._catalogue.entries[model]
        numbers = [unit_of(v).version for v in entry.versions if v.state in ANSWERABLE]
        return ", ".join(map(str, numbers)) or "none"

    def _has_answerable(self, model: str) -> bool:
        return any(v.state in ANSWERABLE for v in self._catalogue.entries[model].versions)


def _is_invalid(version: registry.ModelVersion) -> bool:
    return version.state == INVALID
