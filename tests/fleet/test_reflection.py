"""A tool that knows none of our protos, by reflection alone: `buf curl` against each service."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2

from tests.support.stack import Fleet

pytestmark = pytest.mark.triton

BUF = str(Path(sys.executable).with_name("buf"))

REGISTRY = "shoal.registry.v1.RegistryService"
CONTROLLER = "shoal.controller.v1.ControllerService"
ROUTER = "shoal.router.v1.RouterService"
INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

SERVICES = {
    "registry": {REGISTRY, HEALTH, REFLECTION},
    "controller": {CONTROLLER, HEALTH, REFLECTION},
    "router": {ROUTER, INFERENCE, HEALTH, REFLECTION},
}


def address(stack: Fleet, part: str) -> str:
    found = {
        "registry": stack.registry_address,
        "controller": stack.controller_address,
        "router": stack.router_grpc,
    }
    return f"http://{found[part]}"


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def call(stack: Fleet, part: str, method: str, **request: Any) -> Any:
    done = buf("--data", json.dumps(request), f"{address(stack, part)}/{method}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("part", SERVICES)
def test_each_part_lists_its_services(stack: Fleet, part: str) -> None:
    done = buf("--list-services", address(stack, part))
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == SERVICES[part]


@pytest.mark.parametrize("part", SERVICES)
def test_each_part_lists_its_methods(stack: Fleet, part: str) -> None:
    done = buf("--list-methods", address(stack, part))
    assert done.returncode == 0, done.stderr
    methods = done.stdout.split()
    for service in SERVICES[part]:
        assert any(method.startswith(f"{service}/") for method in methods), service
    some = {
        "registry": (f"{REGISTRY}/ListModels", f"{REGISTRY}/WatchCatalog"),
        "controller": (f"{CONTROLLER}/ListServers", f"{CONTROLLER}/WatchPlacements"),
        "router": (f"{ROUTER}/ExplainRoute", f"{INFERENCE}/ModelInfer"),
    }
    assert set(some[part]) <= set(methods)


@pytest.mark.parametrize(
    ("part", "service"),
    [
        (part, service)
        for part, services in SERVICES.items()
        for service in sorted(services - {REFLECTION})
    ],
)
def test_each_part_says_that_it_is_well(stack: Fleet, part: str, service: str) -> None:
    asked = {} if service == HEALTH else {"service": service}
    assert call(stack, part, f"{HEALTH}/Check", **asked) == {"status": "SERVING"}


def test_models_are_listed(stack: Fleet) -> None:
    found = call(stack, "registry", f"{REGISTRY}/ListModels", pageSize=1000)
    names = {model["name"] for model in found["models"]}
    assert {"models/multiplier", "models/text_stats"} <= names


def test_servers_are_listed(stack: Fleet) -> None:
    (server,) = call(stack, "controller", f"{CONTROLLER}/ListServers")["servers"]
    assert server["name"] == "servers/triton-0"
    assert server["state"] == "SERVER_STATE_HEALTHY"
    assert server["maxModels"] == 3


def test_a_route_is_explained(stack: Fleet) -> None:
    found = call(stack, "router", f"{ROUTER}/ExplainRoute", model="multiplier")
    assert [(arm["model"], arm["version"], arm["share"]) for arm in found["arms"]] == [
        ("multiplier", "2", 1)
    ]
    assert found["steps"]


def test_tritons_own_protocol_answers_too(stack: Fleet) -> None:
    found = call(stack, "router", f"{INFERENCE}/ServerMetadata")
    assert found["name"] == "triton"
    assert found["version"]
    found = call(stack, "router", f"{INFERENCE}/ModelReady", name="multiplier")
    assert found == {"ready": True}


def test_a_refusal_comes_with_its_details(stack: Fleet) -> None:
    request = json.dumps({"model": "nope"})
    done = buf("--data", request, f"{address(stack, 'router')}/{ROUTER}/ExplainRoute")
    assert done.returncode != 0
    status = json.loads(done.stderr)
    assert status["code"] == "not_found"
    assert status["message"].startswith("Request for unknown model: 'nope' is not found")
    (detail,) = status["details"]
    assert detail["type"] == "google.rpc.ErrorInfo"
    info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(detail["value"] + "=="))
    assert (info.domain, info.reason) == ("shoal", "MODEL_NOT_FOUND")
