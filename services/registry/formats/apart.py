"""Inspection in a process of its own.

However an artifact is made, it can neither keep the Registry's other calls waiting, nor take its
memory, nor end it: a file that shrinks while it is mapped ends whoever reads it.
"""

import asyncio
import base64
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.common import programs
from services.registry.formats.config import serialize
from services.registry.formats.format import Described
from services.registry.formats.inspection import Inspected, inspect
from services.registry.formats.refusal import Refusal, Unservable
from services.registry.formats.tensor import Tensor

SECONDS: Final = 60.0
MEMORY: Final = 2 * 2**30  # bytes
_MODULE: Final = "services.registry.formats"


async def inspect_apart(path: Path, *, seconds: float = SECONDS, **options: Any) -> Inspected:
    """Inspect an artifact; `options` are those of `inspect`. Raises Unservable."""
    process = await asyncio.create_subprocess_exec(
        *programs.module(_MODULE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=programs.environment(os.environ),
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(_request(path, options))
    except TimeoutError:
        raise Refusal(f"looking into it took more than {seconds:g} s") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode == -signal.SIGXCPU:
        raise Refusal(f"looking into it took more than {SECONDS:g} s of a processor")
    if process.returncode:
        last = err.decode(errors="replace").strip().rpartition("\n")[2]
        why = "it needs more memory than is allowed" if "MemoryError" in last else last[:500]
        raise Refusal(f"looking into it failed: {why or f'status {process.returncode}'}")
    return _inspected(json.loads(out))


def answer(request: bytes) -> bytes:
    """Return what the other process answers to a request."""
    said = json.loads(request)
    given = said.pop("given")
    try:
        found = inspect(
            Path(said.pop("path")),
            given=None if given is None else _config(given),
            within=tuple(map(Path, said.pop("within"))),
            **said,
        )
    except Unservable as error:
        return json.dumps({"refused": str(error)}).encode()
    return json.dumps({**_plain(found), "config": _text(found.config)}).encode()


def _plain(found: Inspected) -> dict[str, Any]:
    names = ("format", "must_convert", "folder", "also")
    return {
        **{name: getattr(found, name) for name in names},
        "files": dict(found.files),
        "described": asdict(found.described),
    }


def _request(path: Path, options: Mapping[str, Any]) -> bytes:
    given = options.get("given")
    plain = {
        **options,
        "path": str(path),
        "given": None if given is None else _text(given),
        "within": [str(one) for one in options.get("within", ())],
    }
    return json.dumps(plain, default=list).encode()


def _inspected(said: dict[str, Any]) -> Inspected:
    """Read an answer. Raises Unservable."""
    if "refused" in said:
        raise Refusal(said["refused"])
    described = said.pop("described")
    for side in ("inputs", "outputs", "defaults"):
        described[side] = tuple(
            Tensor(one["name"], one["data_type"], tuple(one["shape"])) for one in described[side]
        )
    for name in ("labels", "notes", "code"):
        described[name] = tuple(described[name])
    described["needs"] = tuple((what, version) for what, version in described["needs"])
    return Inspected(
        format=said["format"],
        described=Described(**described),
        config=_config(said["config"]),
        must_convert=said["must_convert"],
        folder=said["folder"],
        files=said["files"],
        also=tuple(said["also"]),
    )


def _text(config: ModelConfig) -> str:
    return base64.b64encode(serialize(config)).decode()


def _config(text: str) -> ModelConfig:
    return ModelConfig.FromString(base64.b64decode(text))
