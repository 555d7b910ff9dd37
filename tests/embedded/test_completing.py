"""What a Triton that completes configs is asked, and what of its errors is told."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.embedded.completing import reason, request_config


def test_a_python_model_is_loaded_without_its_weights() -> None:
    given = text_format.Parse(
        "backend: 'python' default_model_filename: 'other.py' model_warmup { name: 'w' } "
        "instance_group { kind: KIND_GPU count: 3 }",
        ModelConfig(),
    )
    asked, code = request_config(given, 7)
    assert asked == text_format.Parse(
        "backend: 'python' default_model_filename: 'shoal_completion.py' "
        "instance_group { kind: KIND_CPU count: 1 } version_policy { specific { versions: 7 } }",
        ModelConfig(),
    )
    assert code.startswith("from .other import TritonPythonModel")


def test_other_models_are_loaded_as_they_are() -> None:
    asked, code = request_config(ModelConfig(backend="tensorrt"), 1)
    assert (asked.backend, list(asked.version_policy.specific.versions), code) == (
        "tensorrt",
        [1],
        "",
    )


def test_reasons_are_the_servers_own() -> None:
    folder = Path("/data/completer")
    failed = (
        "load failed for model 'm': version 1 is at UNAVAILABLE state: Internal: ValueError: no\n\n"
        "At:\n  /data/completer/m/1/model.py(5): auto_complete_config\n;\n"
    )
    told = "Internal: ValueError: no At: m/1/model.py(5): auto_complete_config"
    assert reason(failed, "", folder) == told
    assert reason("failed to poll", "Invalid argument: bad", folder) == "Invalid argument: bad"
    assert reason("failed to poll", "", folder) == "failed to poll"
