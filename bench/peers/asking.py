"""How a peer is asked, and whether an answer is the right one."""

import json
import urllib.request
from typing import Any, Final

import grpc
import numpy as np

from bench import workloads
from bench.load import Call, grpc_call
from bench.workloads import Workload

_WITHIN: Final = 30.0  # seconds for one answer
_OPTIONS: Final = (("grpc.max_receive_message_length", -1),)
_JSON: Final = ("content-type: application/json",)


class Wrong(Exception):
    """An answer has other numbers."""


def call(
    address: str, workload: Workload, headers: tuple[str, ...] = (), as_json: bool = False
) -> Call:
    """`headers`: as `name: value`. `as_json`: over HTTP/1.1, not gRPC."""
    if as_json:
        body = json.dumps({"INPUT": _numbers(workload)}).encode()
        return Call(f"http://{address}/predict", _JSON, body, http1=True)
    return grpc_call(address, workload, workloads.request(workload.floats), headers)


def answer_size(
    address: str, workload: Workload, headers: tuple[str, ...] = (), as_json: bool = False
) -> int:
    """Bytes of the body of a right answer, framing of gRPC included. Raises Wrong, and
    grpc.RpcError or OSError when there is none."""
    if as_json:
        return _json_size(call(address, workload, headers, as_json), workload)
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        infer: Any = channel.unary_unary(workload.path)
        metadata = [tuple(header.split(": ", 1)) for header in headers]
        answer = infer(workloads.request(workload.floats), timeout=_WITHIN, metadata=metadata)
    if not workloads.is_right(workload.floats, answer):
        raise Wrong(f"it answers {workload.title} with other numbers")
    return 5 + len(answer)


def spread(workload: Workload, as_json: bool) -> Workload:
    """HTTP/1.1 has one request on a connection at a time: as many in flight by more of these."""
    if as_json:
        return workload._replace(connections=workload.in_flight, streams=1)
    return workload


def _json_size(call: Call, workload: Workload) -> int:
    headers = dict(header.split(": ", 1) for header in call.headers)
    asked = urllib.request.Request(call.url, call.body, headers)
    with urllib.request.urlopen(asked, timeout=_WITHIN) as response:
        body = response.read()
    if json.loads(body).get("OUTPUT") != _numbers(workload):
        raise Wrong(f"it answers {workload.title} with other numbers")
    return len(body)


def _numbers(workload: Workload) -> list[list[float]]:
    return [np.arange(workload.floats, dtype="<f4").tolist()]
