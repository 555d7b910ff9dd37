"""Resource names, and which model names, aliases and versions are valid.

A model's name becomes the name of a folder in Triton's repository, a word in the shell command that
starts a Python model, and a segment of resource names and URLs. A version folder such as ``-3``
hangs Triton's loader. So both are checked wherever they enter the system.
"""

import re
from typing import NamedTuple

MODEL_NAME = re.compile(r"[A-Za-z0-9_+@][A-Za-z0-9_.+@-]*")
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
MAX_NAME_LENGTH = 255  # bytes of a file name
MODEL_NAME_RULE = (
    "names start with a letter or digit, '_', '+' or '@', contain only letters, digits, '_', '.', "
    "'+', '@' and '-', and are at most 255 characters long"
)
MAX_ALIAS_LENGTH = 128
MAX_VERSION = 2**63 - 1  # Triton's versions are int64


class ModelVersionName(NamedTuple):
    """The parts of ``models/{model}/versions/{version}``."""

    model: str
    version: int

    def __str__(self) -> str:
        return version_name(self.model, self.version)


def is_model_name(text: str) -> bool:
    """Return whether `text` is a valid name of a model or a server."""
    return MODEL_NAME.fullmatch(text) is not None and len(text) <= MAX_NAME_LENGTH


def is_alias(text: str) -> bool:
    """Return whether `text` is a valid alias. It begins with a letter, so it is never a version."""
    return ALIAS.fullmatch(text) is not None and len(text) <= MAX_ALIAS_LENGTH


def parse_version(text: str) -> int | None:
    """Return the version number in `text`: 1 or more, without a sign or a leading zero.

    Returns None where `text` is anything else.
    """
    if not (text.isascii() and text.isdigit()) or text[0] == "0" or len(text) > 19:
        return None
    number = int(text)
    return number if number <= MAX_VERSION else None


def model_name(model: str) -> str:
    return f"models/{model}"


def version_name(model: str, version: int) -> str:
    return f"models/{model}/versions/{version}"


def alias_name(model: str, alias: str) -> str:
    return f"models/{model}/aliases/{alias}"


def policy_name(model: str) -> str:
    return f"models/{model}/trafficPolicy"


def server_name(server: str) -> str:
    return f"servers/{server}"


def replica_name(server: str, model: str, version: int) -> str:
    return f"servers/{server}/replicas/{model}:{version}"


def parse_server_name(name: str) -> str | None:
    """Return the server in ``servers/{server}``, or None for any other name."""
    match name.split("/"):
        case ["servers", server] if is_model_name(server):
            return server
    return None


def parse_model_name(name: str) -> str | None:
    """Return the model in ``models/{model}``, or None for any other name."""
    match name.split("/"):
        case ["models", model] if is_model_name(model):
            return model
    return None


def parse_version_name(name: str) -> ModelVersionName | None:
    """Return the parts of ``models/{model}/versions/{version}``, or None for any other name."""
    match name.split("/"):
        case ["models", model, "versions", text] if is_model_name(model):
            version = parse_version(text)
            return None if version is None else ModelVersionName(model, version)
    return None


def parse_alias_name(name: str) -> tuple[str, str] | None:
    """Return model and alias of ``models/{model}/aliases/{alias}``, or None for any other name."""
    match name.split("/"):
        case ["models", model, "aliases", alias] if is_model_name(model) and is_alias(alias):
            return model, alias
    return None


def parse_policy_name(name: str) -> str | None:
    """Return the model in ``models/{model}/trafficPolicy``, or None for any other name."""
    match name.split("/"):
        case ["models", model, "trafficPolicy"] if is_model_name(model):
            return model
    return None
