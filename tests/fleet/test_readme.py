"""README's commands, run as they stand there, but for the ports."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import Fleet

pytestmark = pytest.mark.triton

ROOT = Path(__file__).resolve().parents[2]


def block(mark: str) -> str:
    """The fenced block after `<!-- mark -->`."""
    found = re.search(rf"<!-- {mark} -->\n```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert found is not None, mark
    return found[1]


def test_the_python_example(stack: Fleet) -> None:
    code = block("ci:python").replace("localhost:8001", stack.router_grpc)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert 0 <= int(run.stdout) < 1000


@pytest.mark.parametrize("line", block("ci:shell").splitlines())
def test_the_shell_examples(stack: Fleet, line: str) -> None:
    environment = {
        **os.environ,
        "SHOAL_ROUTER": stack.router_grpc,
        "SHOAL_CONTROLLER": stack.controller_address,
        "SHOAL_REGISTRY": stack.registry_address,
    }
    run = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip()
    if " pin " in line:
        subprocess.run(
            ["bash", "-c", line.replace(" pin ", " unpin ")],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
            timeout=60,
        )


@pytest.mark.parametrize("line", block("ci:curl").splitlines())
def test_the_curl_examples(stack: Fleet, line: str) -> None:
    assert "localhost:8000" in line
    command = line.replace("localhost:8000", stack.router_http).replace("curl ", "curl --fail ", 1)
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)
