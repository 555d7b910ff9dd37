"""A real MLflow server on this host."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support.storage import free_ports
from tests.support.waiting import wait_until


@contextlib.contextmanager
def mlflow_server(*options: str) -> Iterator[str]:
    """Run a server that keeps everything in a folder of its own, and give its URL."""
    folder = Path(tempfile.mkdtemp(prefix="mlflow"))
    (port,) = free_ports(1)
    command = [
        *(sys.executable, "-m", "mlflow", "server", f"--port={port}", "--workers=1"),
        *(f"--backend-store-uri=sqlite:///{folder}/mlflow.db",),
        *(options or (f"--artifacts-destination={folder}/artifacts",)),
    ]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
            start_new_session=True,  # so that its workers end with it
        )
    try:
        wait_until(lambda: _healthy(url), 100, "MLflow answers")
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
