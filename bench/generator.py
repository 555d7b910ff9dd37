"""Keeps a number of calls in flight until so many are answered: `python -m bench.generator`.

    python -m bench.generator HOST:PORT PATH CONNECTIONS STREAMS CALLS TURNS < BODY

BODY is what each call sends TURNS times, as gRPC frames it. Prints the fields of Generated as JSON.
"""

import json
import selectors
import sys
import time
from typing import NamedTuple

from bench.http2 import Connection


class Generated(NamedTuple):
    """`seconds`: from the first call to the last answer. `cpu_seconds`: of this process,
    meanwhile. `latencies`: in seconds."""

    seconds: float
    cpu_seconds: float
    latencies: list[float]
    failed: int


def generate(
    address: str,
    path: str,
    connections: int,
    streams: int,
    calls: int,
    body: bytes,
    turns: int = 1,
) -> Generated:
    """Raises http2.Broken. An answer whose size is not the first one's counts as failed."""
    opened = [Connection(address, path, body, turns) for _ in range(connections)]
    selector = selectors.EpollSelector()
    for connection in opened:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    clock = time.perf_counter
    sent: dict[tuple[Connection, int], float] = {}
    latencies: list[float] = []
    sizes: dict[int, int] = {}
    left = calls
    cpu, began = time.process_time(), clock()
    for connection in opened:
        for _ in range(min(streams, left)):
            sent[connection, connection.request()] = clock()
            left -= 1
        connection.flush()
    while sent:
        for key, _ in selector.select():
            connection = key.data
            for stream, size in connection.answers():
                now = clock()
                latencies.append(now - sent.pop((connection, stream)))
                sizes[size] = sizes.get(size, 0) + 1
                if left:
                    left -= 1
                    sent[connection, connection.request()] = now
            connection.flush()
            wanted = selectors.EVENT_READ | selectors.EVENT_WRITE * connection.stuck
            if key.events != wanted:
                selector.modify(connection.socket, wanted, connection)
    seconds, cpu = clock() - began, time.process_time() - cpu
    for connection in opened:
        connection.close()
    right = next(iter(sizes))
    failed = calls - sizes[right] if right else calls
    return Generated(seconds, cpu, latencies, failed)


if __name__ == "__main__":
    address, path, *numbers = sys.argv[1:]
    connections, streams, calls, turns = map(int, numbers)
    body = sys.stdin.buffer.read()
    found = generate(address, path, connections, streams, calls, body, turns)
    json.dump(found._asdict(), sys.stdout)
