"""Client channels between the services of a fleet."""

from collections.abc import Sequence
from typing import Any, Final

import grpc

from services.common import trailers

MAX_CONTROL_MESSAGE: Final = 64 * 1024 * 1024  # bytes; a snapshot of 100,000 models fits

# The fleet's own addresses are never behind a proxy, whatever `http_proxy` says.
DIRECT: Final = (("grpc.enable_http_proxy", 0),)

# gRPC's default first back-off is a second, longer than a service takes to restart. What gRPC calls
# the minimum back-off is the time that an attempt may take: a busy server is not a dead one.
EAGER: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 500),
)

# Control-plane streams are idle for long, and without pings only TCP would notice a dead peer.
KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


def control(address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """Open a channel to another service of the fleet, at host:port."""
    return grpc.aio.insecure_channel(
        address,
        options=(
            ("grpc.max_receive_message_length", MAX_CONTROL_MESSAGE),
            ("grpc.max_metadata_size", trailers.WITHIN_A_FLEET),
            ("grpc.absolute_max_metadata_size", trailers.WITHIN_A_FLEET),
            *DIRECT,
            *EAGER,
            *KEEPALIVE,
            *options,
        ),
    )
