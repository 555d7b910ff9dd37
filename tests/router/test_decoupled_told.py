"""What a config says of its model's replies, on its way from the Registry to a Router's table."""

import time

import pytest

from services.controller.core.limits import Limits
from services.controller.core.residency import Engine
from services.controller.core.view import FleetView
from services.controller.registry.catalogue import Catalogue
from services.controller.routers.placements import Placements, Subscriber
from services.registry.api.messages import version as told
from services.registry.core.catalogue import Version, VersionState
from services.router.control.placement_watch import change_of
from services.router.core.routing.routes import Target
from services.router.core.routing.table import Table
from shoal.controller.v1 import placement_pb2
from shoal.names import model_name
from shoal.registry.v1 import types_pb2 as registry
from tests.support.triton_models import config


def registered(*, decoupled: bool) -> registry.ModelVersion:
    made = config("m")
    made.model_transaction_policy.decoupled = decoupled
    return told(
        Version(
            model="m",
            number=1,
            verdict=VersionState.APPROVED,
            source="/m",
            config=made.SerializeToString(),
            fingerprint="f",
        )
    )


def published(version: registry.ModelVersion) -> placement_pb2.WatchPlacementsResponse:
    catalogue, now = Catalogue(), time.monotonic()
    model = registry.Model(name=model_name("m"), default_version=1)
    catalogue.replace([registry.CatalogEntry(model=model, versions=[version])], (), all_=True)
    view = FleetView(Engine(Limits(), [], now, now).fleet)
    return Placements(view, catalogue, 1).next_message(Subscriber())


def in_table(version: registry.ModelVersion) -> tuple[bool | None, bool]:
    """Of the version, and of all."""
    table = Table()
    table.apply(change_of(published(version)))
    entry = table.entry(Target("m", 1))
    assert entry is not None
    return entry.decoupled, table.none_decoupled


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_router_knows_what_the_config_says(decoupled: bool) -> None:
    assert in_table(registered(decoupled=decoupled)) == (decoupled, not decoupled)


def test_what_an_older_registry_does_not_say_is_not_known() -> None:
    version = registered(decoupled=False)
    version.ClearField("decoupled")
    assert in_table(version) == (None, False)


def test_a_version_without_a_config_is_not_decoupled() -> None:
    """It cannot be loaded, and keeps nobody else from anything."""
    version = Version(model="m", number=1, verdict=VersionState.APPROVED, source="/m")
    assert told(version).decoupled is False
