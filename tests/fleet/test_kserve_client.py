"""KServe's own Python client, unchanged, over gRPC and both of its HTTP protocols."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.stack import Fleet

pytestmark = [pytest.mark.soak, pytest.mark.triton]

PYTHON = Path(__file__).resolve().parents[2] / ".venv-peers" / "kserve" / "bin" / "python"
PROGRAM = Path(__file__).with_name("kserve_program.py")
SECONDS = 90


@pytest.mark.skipif(not PYTHON.exists(), reason="`make bench-peers` installs kserve")
def test_kserves_python_client(stack: Fleet) -> None:
    words = [str(PYTHON), str(PROGRAM), stack.router_grpc, stack.router_http]
    said = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    output = found["grpc"].pop("output")
    assert found["grpc"] == {"live": True, "ready": True, "model": True, "nobody": False}
    assert found["http"].pop("output") == found["http"].pop("binary") == output
    assert found["http"] == {"live": True, "ready": True, "model": True}
    assert found["v1"]["predictions"] == output
    factor = output[0][0]
    assert output == [[factor, 2 * factor, 3 * factor]]
