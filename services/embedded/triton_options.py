"""Which of Triton's own options `shoal up` passes to its servers, and why not the others."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator

_OPTION = re.compile(r"--([a-z0-9-]+)(=.*)?", re.DOTALL)

_ADDRESSES: Final = "Shoal picks the servers' ports, and clients call the Router"
_CONFIGS: Final = "the Registry completes configs, and gives every server the same"
_LOADING: Final = "the Controller alone decides what is loaded, and watches each load"
_ADMIN: Final = "Shoal guards these calls with a key of its own"
_TLS: Final = "Shoal's own parts call the servers over loopback, without TLS"
_TRACES: Final = "traces are set with --otlp, --no-otlp and --trace-ratio"

# By the option's name. `shoal up` passes on everything else, and what Triton does not know or
# cannot read ends it at its start, with its own reason.
_REFUSED: Final[Mapping[str, str]] = {
    "help": "it ends the server",
    "version": "it ends the server",
    "id": "a server's id is its name in Shoal",
    "exit-timeout-secs": "Shoal stops the servers and knows how long that may take",
    "log-file": "Shoal keeps and bounds the servers' logs",
    "backend-directory": "Shoal puts the backends there itself",
    "strict-readiness": "a server is in use while models come and go",
    "http-header-forward-pattern": (
        "servers get every request over gRPC: --grpc-header-forward-pattern is for all of them"
    ),
    **dict.fromkeys(
        ("model-repository", "model-store"), "models to serve are given with --repository"
    ),
    **dict.fromkeys(
        (
            *("allow-http", "http-address", "http-port", "reuse-http-port"),
            *("allow-grpc", "grpc-address", "grpc-port", "reuse-grpc-port"),
            *("allow-metrics", "metrics-address", "metrics-port"),
            *("allow-sagemaker", "allow-vertex-ai"),
        ),
        _ADDRESSES,
    ),
    **dict.fromkeys(
        (
            *("disable-auto-complete-config", "strict-model-config"),
            *("model-config-name", "model-namespacing"),
        ),
        _CONFIGS,
    ),
    **dict.fromkeys(
        ("model-control-mode", "load-model", "repository-poll-secs", "model-load-retry-count"),
        _LOADING,
    ),
    **dict.fromkeys(("grpc-restricted-protocol", "http-restricted-api"), _ADMIN),
    **dict.fromkeys(
        (
            *("grpc-use-ssl", "grpc-use-ssl-mutual", "grpc-server-cert", "grpc-server-key"),
            "grpc-root-cert",
        ),
        _TLS,
    ),
    **dict.fromkeys(
        (
            *("trace-config", "trace-file", "trace-level", "trace-rate", "trace-count"),
            "trace-log-frequency",
        ),
        _TRACES,
    ),
}
# What Shoal sets, too, but needs not to be so. Of an option that is given twice, the last counts.
DEFAULTS: Final = frozenset({"model-load-thread-count", "log-verbose", "allow-gpu-metrics"})

_REGION_PREFIX: Final = "shm-region-prefix-name"


def refusal(name: str, value: str = "") -> str:
    """Return why an option cannot be given, or "" if it can."""
    if name == "backend-config" and _REGION_PREFIX in value:
        return "the prefix tells the servers' shared memory apart"
    return _REFUSED.get(name, "")


def _check(option: str) -> str:
    found = _OPTION.fullmatch(option)
    if found is None or "\0" in option:
        raise ValueError(f"{option!r} is not an option of tritonserver: write --name=value")
    name, value = found.groups(default="")
    if reason := refusal(name, value):
        raise ValueError(f"--{name} cannot be given to the servers: {reason}")
    if not value:
        raise ValueError(f"--{name} lacks its value: write --{name}=VALUE, in one word")
    return option


def shows_headers(options: Sequence[str]) -> bool:
    """Return whether models see headers, which they can only of requests over gRPC."""
    return any(option.startswith("--grpc-header-forward-pattern=") for option in options)


def words(text: str) -> list[str]:
    """Return the options in an environment variable, which are quoted as in a shell."""
    return shlex.split(text)


def _several(given: Any) -> Sequence[Any]:
    return [given] if isinstance(given, str) else given


TritonOptions = Annotated[
    tuple[Annotated[str, AfterValidator(_check)], ...], BeforeValidator(_several)
]
