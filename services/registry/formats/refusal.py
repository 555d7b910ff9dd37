"""The reasons why a version cannot be served."""


class Unservable(Exception):
    """A version cannot be served; the text says why and becomes its invalid_reason."""


class Refusal(Unservable):
    """An artifact is broken, unsafe, or not what it seems; no server sees it."""
