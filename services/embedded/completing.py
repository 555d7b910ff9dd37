"""One version's config, completed by a Triton that runs with auto-completion."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.embedded.part import Part
from shoal.names import ModelVersionName, parse_version

CONFIG_FILE: Final = "config.pbtxt"
LOAD_SECONDS: Final = 300.0
CALL_SECONDS: Final = 10.0

# The file that a Python model is loaded from instead of its own. Only what completes its config is
# run: no weights are read.
_STAND_IN: Final = "shoal_completion.py"
_STAND_IN_CODE: Final = """\
from .{module} import TritonPythonModel as _Model


class TritonPythonModel:
    if hasattr(_Model, "auto_complete_config"):
        auto_complete_config = staticmethod(_Model.auto_complete_config)

    def execute(self, requests):
        raise NotImplementedError
"""

_LOAD_FAILED: Final = re.compile(r"load failed for model .*? is at UNAVAILABLE state: (.*)", re.S)
_POLL_FAILED: Final = re.compile(r"Poll failed for model directory '[^']*': (.*)")


class NotCompleted(Exception):
    """The server could not complete a config; the text says why."""


class ServerLost(Exception):
    """The server has ended, or does not answer in time."""


@dataclass(frozen=True)
class Completing:
    """A Triton that completes configs, and its folders.

    `metadata` is that of its repository calls. It serves `repository`, where a version from the
    tree at `staging` lies as long as it is asked for.
    """

    part: Part
    address: str
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    staging: Path
    repository: Path


async def completed(server: Completing, stub: Any, name: ModelVersionName, config: bytes) -> bytes:
    """Return a serialized inference.ModelConfig as the server completes it.

    `config` is the version's own. Raises NotCompleted, ServerLost.
    """
    model, number = name
    log_began = server.part.log.stat().st_size if server.part.log.exists() else 0
    with _placed(server, name, ModelConfig.FromString(config)):
        try:
            load = service_pb2.RepositoryModelLoadRequest(model_name=model)
            await stub.RepositoryModelLoad(load, metadata=server.metadata, timeout=LOAD_SECONDS)
            ask = service_pb2.ModelConfigRequest(name=model, version=str(number))
            reply = await stub.ModelConfig(ask, metadata=server.metadata, timeout=CALL_SECONDS)
            unload = service_pb2.RepositoryModelUnloadRequest(model_name=model)
            await stub.RepositoryModelUnload(unload, metadata=server.metadata, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise ServerLost(f"it did not load within {LOAD_SECONDS:.0f} s") from error
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise ServerLost("the server ended while it was loaded") from error
            told = _poll_failure(server.part.log, log_began)
            raise NotCompleted(reason(error.details() or "", told, server.repository)) from error
    return bytes(reply.config.SerializeToString())


def request_config(config: ModelConfig, number: int) -> tuple[ModelConfig, str]:
    """Return the config that the server is given, and the code of the file that stands in, or "".

    A Python model is loaded without its weights, on a CPU.
    """
    asked = ModelConfig()
    asked.CopyFrom(config)
    asked.version_policy.Clear()
    asked.version_policy.specific.versions.append(number)
    module, dot, ending = config.default_model_filename.rpartition(".")
    if config.backend != "python" or not dot or ending != "py" or not module.isidentifier():
        return asked, ""
    asked.default_model_filename = _STAND_IN
    asked.ClearField("model_warmup")
    asked.ClearField("instance_group")
    asked.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    return asked, _STAND_IN_CODE.format(module=module)


def reason(details: str, told: str, repository: Path) -> str:
    """Return why a load failed, from the error and what the log says, for people."""
    found = _LOAD_FAILED.search(details)
    text = found[1] if found else told or details
    return " ".join(text.replace(f"{repository}/", "").split()).rstrip(" ;")


@contextmanager
def _placed(server: Completing, name: ModelVersionName, config: ModelConfig) -> Iterator[None]:
    """Place the version in the repository, as links to its staged files."""
    staged, place = server.staging / name.model, server.repository / name.model
    asked, stand_in = request_config(config, name.version)
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir()
        for path in staged.iterdir():
            if parse_version(path.name) is None and path.name != CONFIG_FILE:
                _link(path, place / path.name)
        _link(staged / str(name.version), place / str(name.version))
        if stand_in:
            (place / str(name.version) / _STAND_IN).write_text(stand_in)
        (place / CONFIG_FILE).write_text(text_format.MessageToString(asked))
        yield
    except OSError as error:
        raise NotCompleted(f"its files cannot be read: {error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _link(path: Path, place: Path) -> None:
    """Link a file, or make a folder of links: Python writes its caches into the folders."""
    if path.is_symlink() or not path.is_dir():
        place.symlink_to(os.path.realpath(path))
        return
    place.mkdir()
    for inner in path.iterdir():
        if inner.name != "__pycache__":
            _link(inner, place / inner.name)


def _poll_failure(log: Path, began: int) -> str:
    """Return why a repository was not read, which only the log says, or ""."""
    with log.open("rb") as file:
        file.seek(min(began, file.seek(0, os.SEEK_END)))
        found = _POLL_FAILED.findall(file.read().decode(errors="replace"))
    return found[-1] if found else ""
