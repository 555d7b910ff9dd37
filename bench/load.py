"""Load, by h2load where it is installed and else by bench/generator.py.

h2load takes half the CPU of the other, which matters where all share the cores: a comparison is
one of figures by the same generator.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.rounds import percentile
from bench.workloads import Workload, http_request

GENERATORS: Final = ("h2load", "python")
_ROOT: Final = Path(__file__).resolve().parents[1]
_WITHIN: Final = 120.0  # seconds for one run


class Failed(Exception):
    """The load could not be sent, or was not answered."""


class Load(NamedTuple):
    """Times in seconds, of calls. `cpu`: of the generator, over all of them."""

    calls: int
    seconds: float
    p50: float
    p99: float
    cpu: float


class Call(NamedTuple):
    """A POST for h2load. `http1`: with one request at a time on a connection."""

    url: str
    headers: tuple[str, ...]
    body: bytes
    http1: bool = False


def grpc_call(
    address: str, workload: Workload, message: bytes, headers: tuple[str, ...] = ()
) -> Call:
    """The workload's call with `message`, a serialized ModelInferRequest."""
    return Call(
        f"http://{address}{workload.path}",
        ("content-type: application/grpc", "te: trailers", *headers),
        workload.body(message),
    )


def http_call(address: str, workload: Workload) -> Call:
    """The workload's call over HTTP/1.1."""
    body, headers = http_request(workload)
    return Call(f"http://{address}/v2/models/{workload.model}/infer", headers, body, http1=True)


def available() -> str:
    return "h2load" if shutil.which("h2load") else "python"


def described(generator: str) -> str:
    """With its version."""
    if generator != "h2load":
        return "bench/generator.py"
    said = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.strip()


def send(generator: str, address: str, workload: Workload, message: bytes, calls: int) -> Load:
    """Makes the workload's call with `message`, a serialized ModelInferRequest, so many times; a
    call of several turns by bench/generator.py always. One over HTTP needs h2load, and no message.

    Raises Failed."""
    run = _h2load if generator == "h2load" and workload.turns == 1 else _python
    try:
        return run(address, workload, message, calls)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        raise Failed(f"{generator}: {error} {said.decode(errors='replace')[-2000:]}") from error


def _python(address: str, workload: Workload, message: bytes, calls: int) -> Load:
    numbers = (workload.connections, workload.streams, calls, workload.turns)
    output = subprocess.run(
        [sys.executable, "-P", "-m", "bench.generator", address, workload.path, *map(str, numbers)],
        input=workload.body(message),
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        timeout=_WITHIN,
        check=True,
    ).stdout
    found = json.loads(output)
    if found["failed"]:
        raise Failed(f"{found['failed']} of {calls} calls got another answer")
    return _load(calls, found["seconds"], found["latencies"], found["cpu_seconds"])


def _h2load(address: str, workload: Workload, message: bytes, calls: int) -> Load:
    call = http_call(address, workload) if workload.http else grpc_call(address, workload, message)
    return h2load(call, workload, calls)[0]


def h2load(call: Call, workload: Workload, calls: int) -> tuple[Load, int]:
    """What it found, and the bytes of all answers' bodies. Raises Failed, OSError or
    subprocess.SubprocessError."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        data, log = Path(folder, "body"), Path(folder, "log")
        data.write_bytes(call.body)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.run(
            [
                "h2load",
                *("-n", str(calls), "-d", str(data), f"--log-file={log}"),
                *("-c", str(workload.connections), "-m", str(workload.streams), "-t", "1"),
                *(word for header in call.headers for word in ("-H", header)),
                *(["--h1"] if call.http1 else []),
                call.url,
            ],
            capture_output=True,
            timeout=_WITHIN,
            check=True,
        ).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    if len(rows) != calls or any(status != 200 for _, status, _ in rows):
        raise Failed(
            f"{workload.name} at {call.url}: h2load got {len(rows)} answers to {calls} calls"
        )
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = max(begin + took for begin, _, took in rows) - min(begin for begin, _, _ in rows)
    found = _load(calls, seconds / 1e6, [took / 1e6 for _, _, took in rows], cpu)
    return found, answered_bytes(said.decode())


def answered_bytes(said: str) -> int:
    """Of all answers' bodies, from what h2load prints. Raises Failed."""
    found = re.search(r"^traffic: .*\((\d+)\) data$", said, re.MULTILINE)
    if not found:
        raise Failed(f"h2load did not say how much it received: {said[-500:]}")
    return int(found[1])


def _load(calls: int, seconds: float, latencies: Sequence[float], cpu: float) -> Load:
    ordered = sorted(latencies)
    return Load(calls, seconds, percentile(ordered, 0.5), percentile(ordered, 0.99), cpu)
