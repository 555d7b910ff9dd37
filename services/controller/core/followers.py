"""The Routers that a successor has to wait for, and when a Router may have its first table.

A successor relies on the names that the Registry keeps with the lease, so none may be missing while
the lease lasts. Whether a call reached the Registry is known only once it has been answered.
"""

from collections.abc import Set

Names = Set[str] | None  # None: not all of them are known


class NamedRouters:
    """What the Registry knows of the Routers, as far as its Controller can tell.

    `patience`: seconds after which the lease that any earlier call asked for has run out. Times are
    in seconds of one clock.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        #: Those that may send by the table of an earlier Controller.
        self.inherited: Names = None
        #: Those that the Registry has whichever call it took in last. None if it may have no names:
        #: a successor then waits for all.
        self._certain: Names = None
        #: Since when each Router that waits for its table was named by every call.
        self._since: dict[str, float] = {}

    def inherit(self, names: Names) -> None:
        """Take over the names that the Registry kept for a new holder of the lease."""
        self.inherited = self._certain = names

    def calling(self, names: Names) -> None:
        """Note that a call with `names` is about to be made. It may or may not arrive."""
        if names is None:
            return
        self._certain = names if self._certain is None else self._certain & names
        for router in self._since.keys() - names:
            del self._since[router]

    def answered(self, names: Names) -> None:
        """Note that the Registry has taken in the last call, which had `names`."""
        self._certain = names
        self._since.clear()

    def wait(self, router: str, now: float) -> float:
        """Return for how long a Router that follows has to wait for its first table, unless a call
        is answered before: 0 if it may have it now."""
        if self._certain is None or router in self._certain:
            return 0.0
        since = self._since.setdefault(router, now)
        return max(0.0, since + self._patience - now)
