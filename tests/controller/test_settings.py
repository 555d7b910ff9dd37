"""The Controller's settings, and what the engine is told of them."""

import json
import os
from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from services.controller.core.limits import Limits
from services.controller.settings import Settings, limits, metrics_url, server

MIB = 1 << 20


def settings(
    monkeypatch: pytest.MonkeyPatch, *servers: Mapping[str, object], **more: str
) -> Settings:
    monkeypatch.setenv("SHOAL_CONTROLLER_SERVERS", json.dumps(servers))
    for name, value in more.items():
        monkeypatch.setenv(f"SHOAL_CONTROLLER_{name.upper()}", value)
    return Settings()


def test_without_settings_the_limits_are_the_engines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits(settings(monkeypatch)) == Limits(loads_per_host=min(4, os.cpu_count() or 1))


def test_what_an_operator_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = limits(
        settings(
            monkeypatch,
            policy="gdsf",
            half_life="60",
            idle_ttl="900",
            headroom_idle="5",
            leak_share="0.5",
            loads_per_server="3",
            loads_per_host="7",
            load_backoff="1",
            max_copies="2",
            copy_in_flight="9",
            copy_queue="0.5",
            copy_up="1",
            copy_down="30",
            predict="true",
            predict_ahead="45",
            server_patience="2",
            router_lease="4",
        )
    )
    assert turned == Limits(
        policy="gdsf",
        half_life_seconds=60,
        idle_ttl_seconds=900,
        headroom_idle_seconds=5,
        leak_share=0.5,
        loads_per_server=3,
        loads_per_host=7,
        backoff_seconds=1,
        max_copies=2,
        copy_in_flight=9,
        copy_queue_seconds=0.5,
        copy_up_seconds=1,
        copy_down_seconds=30,
        predict=True,
        predict_seconds=45,
        server_patience_seconds=2,
        router_seconds=4,
    )


def test_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = {"ram": 1000 * MIB, "gpu:0": 500 * MIB}
    found = settings(
        monkeypatch,
        {"id": "plain", "address": "127.0.0.1:1"},
        {
            "id": "far",
            "address": "gpu-7.example:8001",
            "memory_budget": budget,
            "max_models": 10,
            "headroom_models": 2,
            "labels": {"zone": "b"},
            "local": False,
        },
        {
            "id": "tight",
            "address": "127.0.0.1:2",
            "memory_budget": budget,
            "soft_limit": 1,
            "host": "rack-3",
        },
        soft_limit="0.8",
    )
    plain, far, tight = (server(found, one) for one in found.servers)
    assert (plain.id, plain.address, plain.host) == ("plain", "127.0.0.1:1", "localhost")
    assert (plain.budget, plain.soft) == ({}, {})
    assert (far.host, far.labels) == ("gpu-7.example", {"zone": "b"})
    assert (far.max_models, far.headroom_models) == (10, 2)
    assert far.soft == {"ram": 800 * MIB, "gpu:0": 400 * MIB}
    assert tight.host == "rack-3"
    assert tight.soft == {}, "the whole budget: nothing is evicted ahead of need"


def test_a_host_that_servers_share_is_measured_for_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def far(id_: str, address: str) -> dict[str, object]:
        url = f"http://{address.partition(':')[0]}:8002/metrics"
        return {"id": id_, "address": address, "local": False, "metrics_url": url}

    found = settings(
        monkeypatch,
        *(far("a", "one:1"), far("b", "two:1"), far("c", "two:2")),
        {"id": "d", "address": "three:1", "local": False},
    )
    urls = [metrics_url(found, one) for one in found.servers]
    assert urls == ["http://one:8002/metrics", "", "", ""]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"soft_limit": "0"}, "greater than 0"),
        ({"soft_limit": "1.1"}, "less than or equal to 1"),
        ({"policy": "fifo"}, "'lru' or 'gdsf'"),
        ({"max_copies": "0"}, "greater than or equal to 1"),
        ({"idle_ttl": "-1"}, "greater than or equal to 0"),
        ({"probe_timeout": "0"}, "greater than 0"),
    ],
)
def test_what_cannot_be(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        settings(monkeypatch, **more)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"address": "no-port"}, "address"),
        ({"memory_budget": {"disk": 1}}, "memory_budget"),
        ({"memory_budget": {"ram": 0}}, "greater than 0"),
        ({"max_models": 3, "headroom_models": 3}, "leaves none of its max_models"),
        ({"metrics_url": "file:///etc/passwd"}, "metrics_url"),
        ({"memory": {"ram": 1}}, "memory"),
    ],
)
def test_what_a_server_cannot_be(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, object], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        settings(monkeypatch, {"id": "t0", "address": "127.0.0.1:1", **more})


def test_ids_are_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"id": "t0", "address": "127.0.0.1:1"}
    with pytest.raises(ValidationError, match="several servers have the id t0"):
        settings(monkeypatch, one, one)
