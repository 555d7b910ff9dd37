"""Whether there is a lane, and what its proxy starts with."""

import json
from pathlib import Path

import pytest

from services.embedded import lane
from services.embedded.errors import BadSettings
from services.embedded.triton_options import shows_headers

ENVOY = Path("/usr/bin/envoy")


def test_the_lane_is_there_where_envoy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "binary", lambda: ENVOY)
    assert [lane.wanted(setting) for setting in ("auto", "on", "off")] == [ENVOY, ENVOY, None]


def test_without_envoy_there_is_none_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "binary", lambda: None)
    assert [lane.wanted(setting) for setting in ("auto", "off")] == [None, None]
    with pytest.raises(BadSettings, match="Envoy is not installed"):
        lane.wanted("on")


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_the_wheel_is_not_for_every_machine(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert lane.binary() is None


def test_a_wheel_that_is_not_installed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "find_spec", lambda name: None)
    assert lane.binary() is None


def test_the_bootstrap_says_where_to_hear_the_rest(tmp_path: Path) -> None:
    words = lane.command(ENVOY, tmp_path, "127.0.0.1:9200", 1 << 30)
    assert words[0] == str(ENVOY)
    path = words[words.index("--config-path") + 1]
    bootstrap = json.loads(Path(path).read_text())
    (cluster,) = bootstrap["static_resources"]["clusters"]
    (group,) = cluster["load_assignment"]["endpoints"]
    (endpoint,) = group["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert address == {"address": "127.0.0.1", "port_value": 9200}
    (memory,) = bootstrap["overload_manager"]["resource_monitors"]
    assert memory["typed_config"]["max_heap_size_bytes"] == 1 << 30


def test_the_proxy_may_take_what_the_router_may_hold_and_its_own() -> None:
    assert lane.heap({"SHOAL_ROUTER_MAX_HELD_BYTES": "1000"}) == (256 << 20) + 1000
    assert lane.heap({}) >= (1 << 30) + (256 << 20)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), False),
        (("--grpc-header-forward-pattern=x-.*",), True),
        (("--log-verbose=0", "--grpc-header-forward-pattern=.*"), True),
        (("--grpc-keepalive-time=1",), False),
    ],
)
def test_models_are_shown_headers_over_grpc_alone(options: tuple[str, ...], shown: bool) -> None:
    assert shows_headers(options) is shown
