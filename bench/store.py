"""`python -m bench.store`: a large artifact registered from a bucket, against obstore alone.

A Registry in a process of its own registers one file from a local SeaweedFS. In turn with that,
obstore alone copies the file to disk and hashes it in one pass. Then the same source is registered
again, which should move no bytes.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
import obstore
import psutil

from bench import machine
from bench.residency.report import Table, section
from bench.results import record
from services.embedded.ports import pick
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc
from shoal.sizes import format_size, parse_size
from tests.support.registry import PYTHON_CODE, PYTHON_CONFIG, serving
from tests.support.storage import bucket, s3_server, variables

ROOT: Final = Path(__file__).resolve().parents[1]
WITHIN: Final = 1800.0  # seconds
_PART: Final = 8 << 20  # bytes
_SAMPLED_EVERY: Final = 0.05  # seconds


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    parser.add_argument("--size", type=parse_size, default=2 << 30, help="of the artifact")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="add it to bench/RESULTS.md")
    given = parser.parse_args(words)
    before = machine.load_average()
    with s3_server() as url:
        _put(url, given.size)
        rounds = [asyncio.run(_round(url, given.size)) for _ in range(given.rounds)]
    columns = ("round", "obstore s", "register s", "ratio", "again s", "moved again", "RSS MiB")
    rows = [
        (
            str(number),
            *(f"{one['alone']:.2f}", f"{one['register']:.2f}"),
            f"{one['register'] / one['alone']:.2f}",
            f"{one['again']:.2f}",
            f"{one['moved']:.0f}",
            f"{one['idle'] / 2**20:.0f} to {one['peak'] / 2**20:.0f}",
        )
        for number, one in enumerate(rounds, start=1)
    ]
    ratio = statistics.median(one["register"] / one["alone"] for one in rounds)
    about = {
        "artifact": f"{format_size(given.size)} in SeaweedFS on this host",
        "median ratio": f"{ratio:.2f}",
        "machine": f"{machine.describe()}; load average before {before:.1f}",
    }
    table = Table("register, against obstore alone that copies and hashes", columns, rows)
    text = section(f"{datetime.now(UTC):%Y-%m-%d}: a large artifact into the store", about, [table])
    print(text)
    if given.record:
        record(text)
    return 0


def _put(url: str, size: int) -> None:
    """Put a model with one file of random bytes into the bucket."""

    def chunks() -> Iterator[bytes]:
        for at in range(0, size, _PART):
            yield os.urandom(min(_PART, size - at))

    store = bucket(url)
    obstore.put(store, "large/config.pbtxt", PYTHON_CONFIG.encode())
    obstore.put(store, "large/1/model.py", PYTHON_CODE.encode())
    obstore.put(store, "large/1/weights.bin", chunks(), chunk_size=_PART)


async def _round(url: str, size: int) -> Mapping[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="shoal-store-"))
    try:
        alone = await _alone(url, folder / "alone", size)
        async with _registry(url, folder) as (stub, process):
            idle = process.memory_info().rss
            seen = [idle]
            sampling = asyncio.create_task(_sample(process, seen))
            register = await _registered(stub, "first")
            sampling.cancel()
            read = _received()
            again = await _registered(stub, "second")
            moved = _received() - read
        return {
            "alone": alone,
            "register": register,
            "again": again,
            "moved": moved,
            "idle": idle,
            "peak": max(seen),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _sample(process: psutil.Process, seen: list[int]) -> None:
    """Note how much memory a process has, again and again."""
    while True:
        seen.append(process.memory_info().rss)
        await asyncio.sleep(_SAMPLED_EVERY)


def _received() -> int:
    """Return the bytes that have come in over loopback."""
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_recv)


async def _alone(url: str, target: Path, size: int) -> float:
    """Copy the artifact to disk with obstore, hash it as it comes, and return the seconds."""
    began = time.monotonic()
    digest = hashlib.sha256()
    found = await obstore.get_async(bucket(url), "large/1/weights.bin")
    with target.open("wb") as file:
        async for chunk in found.stream(min_chunk_size=1 << 20):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        assert file.tell() == size
    return time.monotonic() - began


@contextlib.asynccontextmanager
async def _registry(url: str, folder: Path) -> AsyncIterator[tuple[Any, psutil.Process]]:
    (port,) = pick(1)
    environment = {
        **os.environ,
        **variables(url),
        "SHOAL_REGISTRY_PORT": str(port),
        "SHOAL_REGISTRY_METRICS_PORT": "none",
        "SHOAL_REGISTRY_DATA_DIR": str(folder / "data"),
    }
    command = [sys.executable, "-m", "services.registry"]
    process = await asyncio.to_thread(
        subprocess.Popen, command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await serving(channel)
            yield pb_grpc.RegistryServiceStub(channel), psutil.Process(process.pid)
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def _registered(stub: Any, model: str) -> float:
    """Register the artifact, and return the seconds that this took."""
    began = time.monotonic()
    request = pb.RegisterModelVersionRequest(parent=f"models/{model}", source="s3://models/large")
    await stub.RegisterModelVersion(request, timeout=WITHIN)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
