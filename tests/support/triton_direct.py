"""One real Triton server, alone and without Shoal, for tests of what it serves."""

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tritonclient.grpc as triton

from services.embedded import leftovers
from services.embedded.backends import assemble
from services.embedded.ports import LOOPBACK, pick
from services.embedded.tritonserver import (
    ADMIN_METADATA,
    TritonSpec,
    command,
    environment,
)
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ROOT / "deploy" / "triton" / "backends"

START_S = 30.0
STOP_S = 15.0


@dataclass(frozen=True)
class DirectTriton:
    """A running server. `admin` is the metadata that its repository calls ask for."""

    spec: TritonSpec
    process: psutil.Process
    client: triton.InferenceServerClient
    log: Path

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.spec.grpc_port}"

    @property
    def admin(self) -> dict[str, str]:
        return {ADMIN_METADATA: self.spec.admin_secret}

    def load(self, model: str, config: str | None = None, timeout_s: float = 60.0) -> None:
        self.client.load_model(model, headers=self.admin, config=config, client_timeout=timeout_s)

    def unload(self, model: str, timeout_s: float = 30.0) -> None:
        """Unloads a model (its parts stay) and waits until the server says so."""
        self.client.unload_model(model, headers=self.admin)
        wait_until(
            lambda: all(row.state != "UNLOADING" for row in self.index(model)),
            timeout_s,
            f"{model} to unload",
        )

    def index(self, model: str | None = None) -> list[Any]:
        """Rows of RepositoryIndex with `name`, `version`, `state` and `reason`."""
        rows = self.client.get_model_repository_index(headers=self.admin).models
        return [row for row in rows if model in (None, row.name)]


@contextlib.contextmanager
def triton_direct(
    folder: Path,
    *repositories: Path,
    start_s: float = START_S,
    orderly: bool = False,
    **settings: Any,
) -> Iterator[DirectTriton]:
    """Starts a server over `repositories`, on free loopback ports, and kills it in the end.

    `folder` takes its log and its backend directory; `orderly`: it is given the time to unload its
    models and to send its spans; `settings` are further fields of TritonSpec. Nothing is left
    behind: no process, no shared memory. Raises RuntimeError, with the end of the log, when the
    server has ended by itself; a test may kill it.
    """
    started_at = time.time()
    grpc_port, metrics_port = pick(2)
    fields: dict[str, Any] = {
        "id": "direct",
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "repositories": repositories,
        "backend_directory": folder / "backends",
        "python": triton_python(),
        "shm_prefix": f"direct-{secrets.token_hex(4)}-",
        "admin_secret": secrets.token_urlsafe(24),
        "exit_timeout_s": 5,
    }
    spec = TritonSpec(**{**fields, **settings})
    assemble(spec.site_packages, BACKENDS, spec.backend_directory)
    log = folder / "triton.log"
    marks = leftovers.marks(spec.shm_prefix, spec.id)
    variables = {**environment(spec, os.environ), **marks}
    with log.open("wb") as output:
        started = subprocess.Popen(command(spec), env=variables, stdout=output, stderr=output)
    process = psutil.Process(started.pid)
    try:
        with contextlib.closing(
            triton.InferenceServerClient(f"{LOOPBACK}:{spec.grpc_port}")
        ) as client:
            wait_until(lambda: exited(started, log) or is_live(client), start_s, "Triton to start")
            yield DirectTriton(spec, process, client, log)
            # Of one that a test has killed and collected, its status is not known: 0.
            if started.poll() not in (0, -signal.SIGKILL):
                exited(started, log)
    finally:
        stop(started, signal.SIGTERM if orderly else signal.SIGKILL)
        # Of a Triton that a test has killed, its models' processes are no children any more; some
        # are frozen, too.
        leftovers.end(leftovers.processes(spec.shm_prefix))
        leftovers.remove_shared_memory(spec.shm_prefix)
        leftovers.remove_backend_folders(started_at)


@contextlib.contextmanager
def two_servers(
    folder: Path, repository: Path, models: Sequence[str]
) -> Iterator[dict[str, DirectTriton]]:
    """`a` and `b`, each with all of `models`."""
    subprocess.run([triton_python(), "-m", "compileall", "-q", repository], check=True)
    with (
        triton_direct(folder / "a", repository, id=f"a-{secrets.token_hex(4)}") as first,
        triton_direct(folder / "b", repository, id=f"b-{secrets.token_hex(4)}") as second,
        ThreadPoolExecutor(4) as loading,
    ):
        loads = [
            loading.submit(server.load, model) for server in (first, second) for model in models
        ]
        for load in loads:
            load.result()
        yield {"a": first, "b": second}


def triton_python() -> Path:
    """The interpreter of Triton's environment, as deploy/triton/setup.sh places it."""
    venv = Path(os.environ.get("TRITON_VENV", ROOT / ".venv-triton"))
    python = venv / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{python} is missing: run deploy/triton/setup.sh")
    return python


def is_live(client: triton.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live(client_timeout=1.0))
    except triton.InferenceServerException:
        return False


def exited(started: subprocess.Popen[bytes], log: Path) -> bool:
    """Raises, with the end of the log, when the server has ended by itself."""
    if started.poll() is not None:
        raise RuntimeError(
            f"Triton ended with {started.returncode}:\n{log.read_text(errors='replace')[-4000:]}"
        )
    return False


def stop(started: subprocess.Popen[bytes], wish: signal.Signals) -> None:
    started.send_signal(wish)
    try:
        started.wait(STOP_S)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait(STOP_S)
