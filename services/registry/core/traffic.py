"""Which traffic policies are allowed."""

from collections.abc import Mapping, Sequence
from typing import Final

from services.common.errors import InvalidField
from services.registry.core.catalogue import Arm, Entry, Target, VersionState
from services.registry.core.errors import IllegalState
from shoal import names

MAX_WEIGHT: Final = 10_000
MAX_ARMS: Final = 100


def parse_target(text: str) -> Target | None:
    """Parse the resource name of a version, an alias or a model; None for anything else."""
    if version := names.parse_version_name(text):
        return Target(version.model, version=version.version)
    if alias := names.parse_alias_name(text):
        return Target(alias[0], alias=alias[1])
    if model := names.parse_model_name(text):
        return Target(model)
    return None


def check_arms(arms: Sequence[tuple[str, int]]) -> tuple[Arm, ...]:
    """Parse the (target, weight) of each arm of a request. Raises InvalidField."""
    if not 1 <= len(arms) <= MAX_ARMS:
        raise InvalidField(
            field="traffic_policy.arms", problem=f"give 1 to {MAX_ARMS}, not {len(arms)}"
        )
    checked = tuple(_check_arm(index, *arm) for index, arm in enumerate(arms))
    if not any(arm.weight for arm in checked):
        raise InvalidField(
            field="traffic_policy.arms", problem="every weight is 0, so no arm would get a request"
        )
    if len({arm.target for arm in checked}) < len(checked):
        raise InvalidField(
            field="traffic_policy.arms", problem="two arms have the same target: add their weights"
        )
    return checked


def _check_arm(index: int, text: str, weight: int) -> Arm:
    field = f"traffic_policy.arms[{index}]"
    target = parse_target(text)
    if target is None:
        raise InvalidField(
            field=f"{field}.target",
            problem=f"{text[:256]!r} is not models/MODEL, models/MODEL/versions/VERSION or "
            "models/MODEL/aliases/ALIAS",
        )
    if not 0 <= weight <= MAX_WEIGHT:
        raise InvalidField(
            field=f"{field}.weight", problem=f"{weight} is not between 0 and {MAX_WEIGHT}"
        )
    return Arm(target, weight)


def check_targets(arms: Sequence[Arm], entries: Mapping[str, Entry]) -> None:
    """Check that every arm can be served now, whatever its weight: weights change in a hurry.

    `entries` are the models that the arms point at. Raises VersionNotFound, NoApprovedVersion, and
    IllegalState for a version that is not approved, because a policy serves requests that name no
    version.
    """
    for arm in arms:
        target = arm.target
        entry = entries[target.model]
        number = (
            target.version
            or (entry.alias(target.alias) if target.alias else 0)
            or entry.approved_default()
        )
        version = entry.version(number)
        if version.state is not VersionState.APPROVED:
            raise IllegalState(
                name=version.name,
                state=version.state.value,
                move="given traffic",
                hint="approve it first, or remove the arm",
            )
