"""Shoal's Python client: inference, and the Registry, Controller and Router as method calls.

    with connect(router="localhost:8001", registry="localhost:9101") as shoal:
        result = shoal.infer("multiplier", {"INPUT": numpy.float32([[1, 2, 3]])}, version=2)
        print(result["OUTPUT"], result.version)
        shoal.set_alias("multiplier", "stable", 2)

`connect_async` returns the same client for asyncio. The package needs grpcio and protobuf;
inference needs numpy, too. docs/clients.md has examples.
"""

from shoal.client.aio import AsyncClient, connect_async
from shoal.client.channels import CHANNEL_OPTIONS, ROUTER_OPTIONS
from shoal.client.errors import (
    ERROR_DOMAIN,
    Aborted,
    AlreadyExists,
    CallFailed,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from shoal.client.inference import (
    ModelMetadata,
    Request,
    Result,
    ServerMetadata,
    TensorMetadata,
)
from shoal.client.resources import (
    Arm,
    Candidate,
    Event,
    Eviction,
    Explanation,
    Imported,
    LoadFailure,
    Model,
    ModelVersion,
    Replica,
    Residency,
    RouteArm,
    Server,
    ServerVerdict,
    Stay,
    VersionExplanation,
)
from shoal.client.retries import DEFAULT_RETRIES, DEFAULT_TIMEOUT
from shoal.client.sequences import AsyncSequence, Sequence
from shoal.client.stored import Departure, DiskHolding, DiskUsage, Import, Provenance, SourceWatch
from shoal.client.sync import Client, connect

__all__ = [
    "CHANNEL_OPTIONS",
    "DEFAULT_RETRIES",
    "DEFAULT_TIMEOUT",
    "ERROR_DOMAIN",
    "ROUTER_OPTIONS",
    "Aborted",
    "AlreadyExists",
    "Arm",
    "AsyncClient",
    "AsyncSequence",
    "CallFailed",
    "Cancelled",
    "Candidate",
    "Client",
    "DeadlineExceeded",
    "Departure",
    "DiskHolding",
    "DiskUsage",
    "Event",
    "Eviction",
    "Explanation",
    "FailedPrecondition",
    "Import",
    "Imported",
    "Internal",
    "InvalidArgument",
    "LoadFailure",
    "Model",
    "ModelMetadata",
    "ModelVersion",
    "NotFound",
    "PermissionDenied",
    "Provenance",
    "Replica",
    "Request",
    "Residency",
    "ResourceExhausted",
    "Result",
    "RouteArm",
    "Sequence",
    "Server",
    "ServerMetadata",
    "ServerVerdict",
    "SourceWatch",
    "Stay",
    "TensorMetadata",
    "Unavailable",
    "Unimplemented",
    "VersionExplanation",
    "connect",
    "connect_async",
]
