"""A real S3 server on this host: SeaweedFS."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.support.waiting import wait_until

KEY, SECRET = "key-of-tests", "secret-of-tests"
BUCKET = "models"

_IDENTITIES = f"""{{"identities": [{{
    "name": "tests",
    "credentials": [{{"accessKey": "{KEY}", "secretKey": "{SECRET}"}}],
    "actions": ["Admin", "Read", "List", "Tagging", "Write"]
}}]}}"""


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run a server with an empty bucket, and give its URL."""
    folder = Path(tempfile.mkdtemp(prefix="s3"))
    config = folder / "s3.json"
    config.write_text(_IDENTITIES)
    command = [
        *(str(Path(sys.executable).with_name("weed")), "-logtostderr", "server", f"-dir={folder}"),
        *("-ip=127.0.0.1", "-filer", "-s3", f"-s3.config={config}", "-master.telemetry=false"),
    ]
    ports = free_ports(8)
    for service, port, grpc in zip(
        ("master", "volume", "filer", "s3"), ports[::2], ports[1::2], strict=True
    ):
        command += [f"-{service}.port={port}", f"-{service}.port.grpc={grpc}"]
    url = f"http://127.0.0.1:{ports[-2]}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until(lambda: _answers(url), 60, "SeaweedFS has a bucket")
        yield url
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def variables(url: str) -> Mapping[str, str]:
    """Return the environment of those who may use the server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


def bucket(url: str) -> S3Store:
    return S3Store(
        BUCKET,
        endpoint=url,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


def put(url: str, files: Mapping[str, bytes]) -> None:
    store = bucket(url)
    for key, content in files.items():
        obstore.put(store, key, content)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _answers(url: str) -> bool:
    """Return whether an object can be put; the first one makes the bucket."""
    try:
        obstore.put(bucket(url), "ready", b"")
        obstore.delete(bucket(url), "ready")
    except BaseError:
        return False
    return True
