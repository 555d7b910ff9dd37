"""Reads what the proxy notes of each request that it sends to a server.

The journal is a pipe. The proxy writes a line when a request has a connection to a server, and one
when the answer is over or the request was broken off. A probe is noted as well: once its line has
been read, so have the lines of all requests that the proxy's worker sent before it."""

import asyncio
import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from services.common import telemetry
from services.common.sampling import RecordedSpan
from services.router.core.routing.routes import Replica, Target

_PIPE_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 18
_BEGUN: Final = b"UpstreamPoolReady"
_ENDED: Final = b"UpstreamEnd"
_PROBE: Final = b"PROBE"
_TRACE: Final = b"TRACE"
_NEVER_SENT: Final = b"-"
#: gRPC's UNAVAILABLE and NOT_FOUND: the request is repeated at the Router, which counts it.
_REPEATED: Final = frozenset({b"5", b"14", b"-"})

_log = structlog.get_logger(__name__)

Begun = Callable[[Replica], None]
#: Gets the replica, the seconds that the answer took or None if the request was broken off or is
#: repeated, and whether it failed.
Ended = Callable[[Replica, float | None, bool], None]


class Journal:
    """The requests that the proxy has under way at the servers."""

    def __init__(self, path: Path, begun: Begun, ended: Ended) -> None:
        self._path = path
        self._begun = begun
        self._ended = ended
        self._descriptor: int | None = None
        self._rest = b""
        self._in_flight: dict[Replica, int] = {}
        self._servers: dict[str, str] = {}
        self._replicas: dict[tuple[bytes, bytes], Replica | None] = {}
        #: The last probe that was read, and an event for the next one.
        self._probe = b""
        self._probed = asyncio.Event()
        self._ended_one = asyncio.Event()

    def open(self) -> None:
        """Make the pipe unless it is there, and begin to read. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISFIFO(self._path.stat().st_mode):
                self._path.unlink()
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self._path, 0o600)
        # Open for writing as well: a pipe without a writer would be readable all the time.
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Stop reading."""
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        self.forget()

    def name_servers(self, addresses: Mapping[str, str]) -> None:
        """Learn which server is at each `host:port`."""
        if any(self._servers.get(address) != server for address, server in addresses.items()):
            self._servers.update(addresses)
            self._replicas.clear()

    def forget(self) -> None:
        """Take everything under way as over: the proxy is gone."""
        for replica, count in self._in_flight.items():
            for _ in range(count):
                self._ended(replica, None, True)
        self._in_flight.clear()
        self._tell_ended()

    async def until_idle(self) -> None:
        """Wait until nothing is under way."""
        while self._in_flight:
            await self._ended_one.wait()

    async def read_until(self, probe: str) -> None:
        """Wait until the line of a probe has been read."""
        while self._probe != f"/{probe}".encode():
            await self._probed.wait()

    def _read(self) -> None:
        assert self._descriptor is not None
        try:
            chunk = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self.take(line)

    def take(self, line: bytes) -> None:
        """Take in a line, without its end."""
        kind, _, rest = line.partition(b" ")
        if kind in (_BEGUN, _ENDED):
            words = rest.split(b" ")
            if len(words) != 6:
                _log.warning("a line of the proxy cannot be read", line=line[:200])
                return
            replica = self._replica(words[0], words[1])
            if replica is None:
                return
            if kind == _BEGUN:
                self._in_flight[replica] = self._in_flight.get(replica, 0) + 1
                self._begun(replica)
            else:
                self._end(replica, words)
        elif kind == _TRACE:
            self._trace(rest.split(b" "))
        elif kind == _PROBE:
            self._probe = rest
            self._probed.set()
            self._probed.clear()

    def _end(self, replica: Replica, words: list[bytes]) -> None:
        count = self._in_flight.get(replica, 0)
        if not count or words[5] == _NEVER_SENT:
            return  # it never began, or began before this process did
        if count == 1:
            del self._in_flight[replica]
        else:
            self._in_flight[replica] = count - 1
        status, micros = _status(words[2], words[3]), words[4]
        seconds = None
        if status not in _REPEATED and micros.isdigit():
            seconds = int(micros) / 1e6
        self._ended(replica, seconds, status != b"0")
        self._tell_ended()

    def _tell_ended(self) -> None:
        self._ended_one.set()
        self._ended_one.clear()

    def _trace(self, words: list[bytes]) -> None:
        """Record the span of a traced request."""
        replica = self._replica(words[0], words[1])
        if replica is None or len(words) != 7:
            return
        _, trace_id, span_id, _ = words[4].decode().split("-")
        start = int(words[5]) * 1000
        micros = int(words[6]) if words[6].isdigit() else 0
        telemetry.record(
            RecordedSpan(
                "inference.GRPCInferenceService/ModelInfer",
                int(trace_id, 16),
                int(span_id, 16),
                start,
                start + micros * 1000,
                _status(words[2], words[3]) != b"0",
                {
                    "shoal.model": replica.target.model,
                    "shoal.version": str(replica.target.version),
                    "shoal.server": replica.server,
                    "shoal.lane": "true",
                },
            )
        )

    def _replica(self, route: bytes, host: bytes) -> Replica | None:
        """Return the replica, or None if the request went to the Router."""
        key = (route, host)
        if key in self._replicas:
            return self._replicas[key]
        found = None
        model, _, version = route.decode(errors="replace").rpartition(":")
        server = self._servers.get(host.decode(errors="replace"))
        if server is not None and model and version.isdecimal():
            found = Replica(server, Target(model, int(version)))
        self._replicas[key] = found
        return found


def _status(grpc: bytes, http: bytes) -> bytes:
    """Return the status of gRPC, for HTTP as well: 0 or 2, or "-" if no answer came."""
    if grpc != b"-" or http == b"0":
        return grpc
    return b"0" if http == b"200" else b"2"
