"""Behind the lane's proxy, strangers stay strangers and this host's callers stay administrators."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import urllib3
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.residency.models import Model, is_right, request, write_repository
from services.embedded.background import BackgroundStack
from shoal.router.v1 import router_service_pb2 as router
from tests.common.test_caller import OUTER
from tests.support.raw_http2 import INFER
from tests.support.stack import Fleet

pytestmark = pytest.mark.triton

MODEL = Model("near", 1)
OUTSIDE = next((address for address in OUTER if not address.startswith("[")), "")
# What a stranger may claim, none of which is believed.
CLAIMS = (
    ("x-shoal-peer", "127.0.0.1:1"),
    ("x-forwarded-for", "127.0.0.1"),
    ("x-real-ip", "127.0.0.1"),
    ("forwarded", "for=127.0.0.1"),
    ("x-envoy-external-address", "127.0.0.1"),
    ("x-envoy-internal", "true"),
    ("x-shoal-subject", "alice"),
    ("x-shoal-roles", "admin"),
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if not OUTSIDE:
        pytest.skip("this machine has no address but loopback")
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, [MODEL])
    with BackgroundStack(
        f"--repository={folder}",
        *("--lane=on", "--trace-ratio=0", "--no-otlp"),
        environment={"SHOAL_ROUTER_HOST": "0.0.0.0"},
        start_within=120,
    ) as up:
        yield Fleet(up)


def outside(address: str) -> str:
    return f"{OUTSIDE}:{address.rpartition(':')[2]}"


def test_a_stranger_may_infer_but_not_administrate(stack: Fleet) -> None:
    with grpc.insecure_channel(outside(stack.router_grpc)) as channel:
        infer: Any = channel.unary_unary(INFER)
        for _ in range(3):
            assert is_right(MODEL, infer(request(MODEL)))
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        unload = service_pb2.RepositoryModelUnloadRequest(model_name=MODEL.name)
        for claims in ((), CLAIMS, *((claim,) for claim in CLAIMS)):
            with pytest.raises(grpc.RpcError) as refused:
                stub.RepositoryModelUnload(unload, metadata=claims)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert f"anonymous at ipv4:{OUTSIDE}" in (refused.value.details() or "")


def test_a_stranger_may_not_administrate_over_http(stack: Fleet) -> None:
    url = f"http://{outside(stack.router_http)}/v2/repository/models/{MODEL.name}/unload"
    for claims in ({}, dict(CLAIMS)):
        answer = urllib3.request("POST", url, headers=claims)
        assert answer.status == 403
        assert answer.json()["reason"] == "ADMIN_REQUIRED"


def test_this_host_may_administrate_and_only_the_proxy_listens_outside(stack: Fleet) -> None:
    steps = stack.router.ExplainRoute(router.ExplainRouteRequest(model=MODEL.name)).steps
    assert steps
    url = f"http://{stack.router_http}/v2/repository/models/{MODEL.name}/load"
    assert urllib3.request("POST", url).status == 200
    behind = stack.stack.announced().endpoints
    for name in ("router_own_grpc", "router_own_http", "lane_discovery", "lane_grpc_probe"):
        port = int(behind[name].rpartition(":")[2])
        with pytest.raises(urllib3.exceptions.HTTPError, match="refused"):
            urllib3.request("GET", f"http://{OUTSIDE}:{port}/", retries=False)
