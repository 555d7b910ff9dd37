"""What outlives a Controller of the loads that failed: told as it changes, and taken in again."""

from services.controller.core import events as ev
from services.controller.core.entities import Unit
from services.controller.core.failures import Failure
from services.controller.core.fleet import Fleet


def failed(fleet: Fleet, unit: Unit, failure: Failure, now: float) -> None:
    """Have a failure kept beyond this Controller's life."""
    wait = failure.until - now
    failing = ev.Failing(failure.server, failure.cause, failure.count, failure.set_aside, wait)
    _tell(fleet, unit, failing)


def forget(fleet: Fleet, unit: Unit) -> bool:
    """Forget that `unit` failed, now that it has loaded. Returns whether it had."""
    had_failed = fleet.failures.clear(unit)
    if had_failed:
        _tell(fleet, unit, None)
    return had_failed


def recalled(fleet: Fleet, event: ev.FailuresRecalled, now: float) -> None:
    """Take in the failures that an earlier Controller has seen, of what is in the catalogue. A unit
    that was set aside, and was to be tried again since, begins anew."""
    for unit, known in event.failures.items():
        if unit not in fleet.known.specs or (known.set_aside and known.wait <= 0):
            continue
        until = now + known.wait
        failure = Failure(known.server, known.cause, until, known.count, known.set_aside)
        fleet.failures.recall(unit, failure)
        fleet.publish(user.model for user in fleet.known.with_users(unit))


def _tell(fleet: Fleet, unit: Unit, failing: ev.Failing | None) -> None:
    spec = fleet.known.specs.get(unit)
    if spec is not None and not spec.incomplete:  # its server may have lacked something
        fleet.tell(ev.Failed(unit, spec.config_digest, spec.fingerprint, failing))
