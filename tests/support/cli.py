"""The `shoal` command in this process, and a real Registry for it to call."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from structlog.testing import capture_logs

from services.registry.assembly import running
from services.registry.settings import RegistrySettings
from shoal.cli.__main__ import main
from tests.support.registry import serving

# Ports that no program listens on.
NO_REGISTRY, NO_CONTROLLER, NO_ROUTER = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"


@dataclass(frozen=True)
class Done:
    status: int | str | None
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def shoal(*arguments: object) -> Done:
    """Run the command and capture what it prints. Not for two at a time."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: int | str | None = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
    return Done(status, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Shell:
    """The command with a real Registry, and without a Controller and a Router."""

    registry: str

    async def __call__(self, *arguments: object) -> Done:
        others = ("--controller", NO_CONTROLLER, "--router", NO_ROUTER)
        return await asyncio.to_thread(shoal, "--registry", self.registry, *others, *arguments)


@asynccontextmanager
async def registry_alone(folder: Path, **settings: Any) -> AsyncIterator[Shell]:
    """Start a Registry with its data in `folder`, and yield a shell once it is SERVING."""
    chosen = RegistrySettings(
        port=0,
        metrics_port=None,
        data_dir=folder,
        stop_grace_seconds=0.2,
        code_sources=("file", "upload"),
        **settings,
    )
    # Its log lines would stand between what the command prints.
    with capture_logs():
        async with running(chosen) as ports:
            address = f"127.0.0.1:{ports.port}"
            async with grpc.aio.insecure_channel(address) as channel:
                await serving(channel)
            yield Shell(address)
