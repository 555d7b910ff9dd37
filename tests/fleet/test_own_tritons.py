"""The commands of docs/own-tritons.md, as they stand there but for folders and ports."""

import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from services.embedded import leftovers
from services.embedded.backends import assemble
from services.embedded.ports import pick
from services.embedded.tritonserver import TritonSpec, command, environment
from tests.support.client_docs import blocks
from tests.support.stack import EXAMPLES
from tests.support.triton_direct import BACKENDS, ROOT, triton_python
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

PAGE = "docs/own-tritons.md"


def tritonserver_on_the_path(folder: Path) -> Path:
    """A `tritonserver` that runs like an installed one: the wheel's, with its libraries and
    backends."""
    spec = TritonSpec(
        id="unused",
        grpc_port=1,
        metrics_port=1,
        repositories=(),
        backend_directory=folder / "backends",
        python=triton_python(),
        shm_prefix="unused",
        admin_secret=secrets.token_urlsafe(24),
    )
    assemble(spec.site_packages, BACKENDS, spec.backend_directory)
    variables = environment(spec, {"PATH": "/usr/bin:/bin"})
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    binary = folder / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text(
        f"#!/bin/bash\nexport {settings}\n"
        f'exec {command(spec)[0]} --backend-directory={spec.backend_directory} "$@"\n'
    )
    binary.chmod(0o755)
    return binary.parent


@contextmanager
def running(block: str, variables: Mapping[str, str], log: Path) -> Iterator[None]:
    """One of the page's processes, in a session of its own. Its end is part of the test."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {block}"],
            cwd=ROOT,
            env=variables,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_page(tmp_path: Path) -> None:
    ports = [str(port) for port in pick(8)]
    replaced = {
        "/srv/models": str(EXAMPLES),
        "/srv/shoal": str(tmp_path / "shoal"),
        "8011": ports[0],
        "8012": ports[1],
        "shm-region-prefix-name=t0-": f"shm-region-prefix-name=page-{ports[0]}-",
    }

    def here(block: str) -> str:
        for word, other in replaced.items():
            block = block.replace(word, other)
        return block

    names = ("REGISTRY", "REGISTRY_METRICS", "CONTROLLER", "CONTROLLER_METRICS")
    services = dict(zip(names, ports[2:6], strict=True))
    services |= {"ROUTER_GRPC": ports[6], "ROUTER_HTTP": ports[7]}
    binaries = tritonserver_on_the_path(tmp_path)
    variables = {
        **os.environ,
        **{f"SHOAL_{name}_PORT": port for name, port in services.items()},
        "SHOAL_CONTROLLER_REGISTRY": f"127.0.0.1:{services['REGISTRY']}",
        "SHOAL_ROUTER_CONTROLLER": f"127.0.0.1:{services['CONTROLLER']}",
        "PATH": f"{Path(sys.executable).parent}:{binaries}:{os.environ['PATH']}",
    }
    [prepare] = blocks("ci:prepare", PAGE)
    subprocess.run(["bash", "-e", "-c", here(prepare)], cwd=ROOT, env=variables, check=True)
    started = time.time()
    try:
        with ExitStack() as stack:
            for number, block in enumerate(blocks("ci:serve", PAGE)):
                log = tmp_path / f"{number}.log"
                stack.enter_context(running(here(block), variables, log))
                if number == 0:
                    marker = tmp_path / "shoal" / "staging" / ".shoal-staging"
                    wait_until(marker.exists, 20, "the staging tree")
            [check] = blocks("ci:check", PAGE)
            found = subprocess.run(
                ["bash", "-e", "-c", here(check)],
                cwd=ROOT,
                env=variables,
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(tmp_path.glob("*.log")))
            assert found.returncode == 0, found.stdout + found.stderr + logs
            assert "HEALTHY" in found.stdout
            assert "text_stats" in found.stdout.splitlines()[-1]
    finally:
        leftovers.remove_shared_memory(f"page-{ports[0]}-")
        leftovers.remove_backend_folders(started)
