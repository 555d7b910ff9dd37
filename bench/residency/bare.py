"""One Triton without Shoal, started as Shoal starts its own, and a client that loads by itself."""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.load import Failed
from bench.residency.models import Model, is_right, request
from bench.subjects import end
from bench.workloads import INFER
from services.embedded import launcher, leftovers, machine
from services.embedded.backends import assemble
from services.embedded.ports import LOOPBACK, pick
from services.embedded.tritonserver import ADMIN_METADATA, TritonSpec, command, environment

POLL: Final = 0.005  # seconds between two questions to the index
_WITHIN: Final = 60.0  # seconds for any one thing


class Bare:
    """`address`, `metrics`: host:port."""

    def __init__(self, address: str, metrics: str, admin_key: str) -> None:
        self.address = address
        self.metrics = metrics
        self._metadata = ((ADMIN_METADATA, admin_key),)
        self._channel = grpc.insecure_channel(address)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer: Any = self._channel.unary_unary(INFER)

    def close(self) -> None:
        self._channel.close()

    def load(self, model: Model) -> None:
        """Returns once the model is READY. Raises grpc.RpcError."""
        wanted = service_pb2.RepositoryModelLoadRequest(model_name=model.name)
        self._stub.RepositoryModelLoad(wanted, metadata=self._metadata, timeout=_WITHIN)
        question = service_pb2.ModelReadyRequest(name=model.name)
        _poll(lambda: bool(self._stub.ModelReady(question, timeout=_WITHIN).ready), "READY")

    def unload(self, model: Model) -> None:
        """Returns once the index says that it is gone. Raises grpc.RpcError."""
        unwanted = service_pb2.RepositoryModelUnloadRequest(model_name=model.name)
        self._stub.RepositoryModelUnload(unwanted, metadata=self._metadata, timeout=_WITHIN)
        _poll(lambda: model.name not in self.present(), "unloaded")

    def present(self) -> set[str]:
        """Names of what is loading, READY or unloading."""
        index = self._stub.RepositoryIndex(
            service_pb2.RepositoryIndexRequest(), metadata=self._metadata, timeout=_WITHIN
        )
        return {row.name for row in index.models if row.state not in ("", "UNAVAILABLE")}

    def infer(self, model: Model) -> None:
        """Raises Failed when the answer is another one, grpc.RpcError."""
        if not is_right(model, self._infer(request(model), timeout=_WITHIN)):
            raise Failed(f"bare Triton answers {model.name} with other numbers")

    def version(self) -> str:
        asked = service_pb2.ServerMetadataRequest()
        return str(self._stub.ServerMetadata(asked, timeout=_WITHIN).version)

    def live(self) -> bool:
        try:
            return bool(self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=1.0).live)
        except grpc.RpcError:
            return False


@contextlib.contextmanager
def bare_triton(repository: Path, load_threads: int = 4) -> Iterator[Bare]:
    """Ends with this process, however that ends. `load_threads`: Triton's own; 4 is what the
    embedded stack asks for."""
    began = time.time()
    ports = pick(2)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        spec = TritonSpec(
            id="bare",
            grpc_port=ports[0],
            metrics_port=ports[1],
            repositories=(repository,),
            backend_directory=Path(folder, "backends"),
            python=machine.triton_python(None),
            shm_prefix=f"bare-{secrets.token_hex(4)}-",
            admin_secret=secrets.token_urlsafe(24),
            load_threads=load_threads,
            exit_timeout_s=5,
        )
        assemble(spec.site_packages, machine.triton_files() / "backends", spec.backend_directory)
        with Path(folder, "log").open("w+b") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *command(spec)],
                env=environment(spec, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            addresses = [f"{LOOPBACK}:{port}" for port in ports]
            server = Bare(addresses[0], addresses[1], spec.admin_secret)
            try:
                _poll(lambda: process.poll() is not None or server.live(), "live")
                if process.returncode is not None:
                    log.seek(0)
                    raise Failed(f"Triton: {log.read()[-2000:].decode(errors='replace')}")
                yield server
            finally:
                server.close()
                end(process)
                leftovers.remove_shared_memory(spec.shm_prefix)
                leftovers.remove_backend_folders(began)


def _poll(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WITHIN
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"bare Triton: not {what} within {_WITHIN:g} s")
        time.sleep(POLL)
