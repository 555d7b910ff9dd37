"""The inventory: what a server holds when it joins the fleet.

It is read from the server's index, configs and statistics.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2

from services.controller.core import events as ev
from services.controller.core.entities import Server, Unit
from services.controller.registry.catalogue import Catalogue
from services.controller.triton.client import (
    LOADING,
    READY,
    UNLOADING,
    Index,
    Triton,
    TritonRefused,
)
from services.controller.triton.config import serving

# Fields that differ between versions that share a server, and are changed in place.
FREE: Final = ("version_policy", "instance_group")
# Fields that Triton leaves as they are; in others it may complete a part.
EXACT: Final = ("input", "output", "parameters")
# Fields that Triton fills in where they were left out.
FILLED: Final = frozenset(
    {
        *("default_model_filename", "platform", "backend", "runtime"),
        *("optimization", "model_transaction_policy"),
    }
)


async def inventory(
    server: Server, triton: Triton, index: Index, catalogue: Catalogue, selfcheck: str
) -> ev.ServerFound:
    """Return what the server holds, without the model `selfcheck`.

    Raises TritonGone.
    """
    resident = units_in(index, READY, selfcheck)
    return ev.ServerFound(
        server,
        resident,
        loading=units_in(index, LOADING, selfcheck),
        unloading=units_in(index, UNLOADING, selfcheck),
        outdated=await _outdated(triton, resident, catalogue),
        idle=await _idle(triton) if resident else {},
    )


def units_in(index: Index, wanted: str, selfcheck: str) -> frozenset[Unit]:
    """Return the units in the state `wanted`, without those of the model `selfcheck`."""
    return frozenset(
        unit for unit, (state, _) in index.items() if state == wanted and unit.model != selfcheck
    )


async def _outdated(
    triton: Triton, resident: frozenset[Unit], catalogue: Catalogue
) -> frozenset[Unit]:
    found = set()
    for unit in resident:
        version = catalogue.version(unit)
        if version is None:
            continue
        try:
            loaded = await triton.config(unit)
            # Instances are changed in place, but a replica with others takes another size.
            if not same(version.config, loaded) or (
                serving(version.config).instances != serving(loaded).instances
            ):
                found.add(unit)
        except TritonRefused:  # it is no longer there
            continue
    return frozenset(found)


async def _idle(triton: Triton) -> Mapping[Unit, float]:
    now = time.time()
    return {
        unit: max(0.0, now - told.last_inference)
        for unit, told in (await triton.statistics()).items()
        if told.last_inference
    }


def same(registered: bytes, loaded: bytes) -> bool:
    """Return whether `loaded` is what a server makes of the config `registered`.

    Both are serialized inference.ModelConfig. What Triton fills in by itself, and what may be
    changed in place, does not count.
    """
    ours = model_config_pb2.ModelConfig.FromString(registered)
    theirs = model_config_pb2.ModelConfig.FromString(loaded)
    for field in FREE:
        ours.ClearField(field)
        theirs.ClearField(field)
    if ours.model_transaction_policy.decoupled != theirs.model_transaction_policy.decoupled:
        return False
    if any(getattr(ours, field) != getattr(theirs, field) for field in EXACT):
        return False
    given = {field.name for field, _ in ours.ListFields()}
    added = {field.name for field, _ in theirs.ListFields()} - given
    return added <= FILLED and _within(ours, theirs)


def _within(ours: Message, theirs: Message) -> bool:
    """Return whether all that is set in `ours` is the same in `theirs`."""
    return all(
        _same_value(value, getattr(theirs, field.name)) for field, value in ours.ListFields()
    )


def _same_value(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Message):
        return _within(ours, theirs)
    if hasattr(ours, "items"):
        return ours.keys() == theirs.keys() and all(
            _same_value(value, theirs[key]) for key, value in ours.items()
        )
    if hasattr(ours, "append"):
        return len(ours) == len(theirs) and all(map(_same_value, ours, theirs))
    return bool(ours == theirs)
