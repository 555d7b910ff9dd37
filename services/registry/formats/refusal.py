"""The reason why a version cannot be served."""


class Unservable(Exception):
    """A version cannot be served; the text says why and becomes its invalid_reason."""
