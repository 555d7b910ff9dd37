"""Triton's model configs: what one has loaded, and what follows from it.

A config is a serialized inference.ModelConfig.
"""

import json
from functools import lru_cache
from typing import Final, NamedTuple

from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2

from services.controller.core.entities import Batching

MICROSECONDS: Final = 1e-6


class Serving(NamedTuple):
    """The fields of a config that say how a server runs the model."""

    #: Instances on each device, each of which may hold a copy of the weights.
    instances: int
    #: How requests wait for others of their batch; None if they wait for none.
    batching: Batching | None


@lru_cache(maxsize=4096)
def serving(config: bytes) -> Serving:
    """Return how a server runs the model of a config."""
    message = model_config_pb2.ModelConfig.FromString(config)
    dynamic = message.dynamic_batching
    preferred, delay = dynamic.preferred_batch_size, dynamic.max_queue_delay_microseconds
    size = max(preferred, default=message.max_batch_size)
    return Serving(
        instances=max(1, sum(group.count for group in message.instance_group)),
        batching=Batching(size, delay * MICROSECONDS) if preferred or delay else None,
    )


def config_override(config: bytes, versions: tuple[int, ...]) -> str:
    """Return the value of the `config` parameter that has exactly `versions` loaded.

    Triton makes the change in place only when all but `version_policy` and `instance_group` is
    identical to what it has, so the rest is passed on as it was registered.
    """
    message = model_config_pb2.ModelConfig.FromString(config)
    message.version_policy.Clear()
    message.version_policy.specific.versions.extend(versions)
    return json.dumps(MessageToDict(message, preserving_proto_field_name=True))


def decoupled(config: bytes) -> bool:
    """Return whether the model may answer a request any number of times.

    Such a model cannot be asked through ModelInfer.
    """
    message = model_config_pb2.ModelConfig.FromString(config)
    return bool(message.model_transaction_policy.decoupled)


def has_processes(config: bytes) -> bool:
    """Return whether the model certainly runs in processes of its own."""
    return bool(model_config_pb2.ModelConfig.FromString(config).backend == "python")
