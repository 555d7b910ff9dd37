"""Triton's model configs: what one has loaded, and what follows from it.

A config is a serialized inference.ModelConfig.
"""

import json

from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2


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
