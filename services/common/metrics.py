"""Prometheus metrics, and the server that they are scraped from."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from socket import socket
from socketserver import ThreadingMixIn
from typing import Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.ports import listen

# Seconds: from an answer out of memory to a load that a caller waits for.
_RPC_BUCKETS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
# How often the server checks whether to end. Its default of half a second would be most of an exit.
_LOOK_SECONDS: Final = 0.05

RPC_SECONDS: Final = Histogram(
    "shoal_rpc_seconds",
    "Time a Shoal service took for a call, by full method name and gRPC status code.",
    ["method", "code"],
    buckets=_RPC_BUCKETS,
)


class PythonObjects(Collector):
    """What the process holds inside Python, where leaks show long before its total size grows."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "shoal_asyncio_tasks",
            "Tasks of asyncio that have not ended.",
            len(asyncio.all_tasks(self._loop)),
        )
        yield GaugeMetricFamily(
            "shoal_python_blocks",
            "Blocks of memory that Python's objects take.",
            sys.getallocatedblocks(),
        )


class MetricsServer:
    """The server, in a thread of its own. `port` is the bound one, which matters for port 0."""

    def __init__(self, listener: socket) -> None:
        self._server = _MetricsServer(listener)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_SECONDS,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def serve(host: str, port: int) -> MetricsServer:
    """Serve `GET /metrics` from a thread of its own. Raises ports.PortTaken."""
    return MetricsServer(listen(host, port))


class _Request(WSGIRequestHandler):
    timeout = 10  # seconds for which a silent client may occupy its thread

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """A line for every scrape would bury the rest."""


class _MetricsServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, listener: socket) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        # server_bind would set these too, after looking up the host's name.
        self.server_name, self.server_port = host, port
        self.setup_environ()
        self.set_app(make_wsgi_app())
