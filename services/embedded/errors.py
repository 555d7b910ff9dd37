"""The reasons why the stack cannot start, each with an exit status that scripts can tell apart."""

from typing import ClassVar


class CannotStart(Exception):
    """Base of the tree. The text says what to do, and `exit_status` follows sysexits.h."""

    exit_status: ClassVar[int] = 70


class BadSettings(CannotStart):
    """A flag, an environment variable or a key of the file cannot be used."""

    exit_status = 2


class TritonUnavailable(CannotStart):
    """The Triton of the wheel cannot run on this machine, or is not set up."""

    exit_status = 69


class PartFailed(CannotStart):
    """A part ended, or was not ready in time, before the stack was up."""

    exit_status = 70


class DataInUse(CannotStart):
    """Another stack uses the data folder."""

    exit_status = 73


class PortTaken(CannotStart):
    """Another program listens on a port."""

    exit_status = 75
