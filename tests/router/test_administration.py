"""Triton's administrative calls through a Router, beside those of the servers themselves."""

import asyncio
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from services.common.status import error_info
from services.controller.core.entities import Server
from services.controller.core.states import State
from services.controller.triton.client import ADMIN_KEY_HEADER
from services.router.control import calls as controller_calls
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.registry.v1 import types_pb2 as registry
from tests.support import controller as controller_harness
from tests.support import router as router_harness
from tests.support.controller import entry
from tests.support.router import in_a_task, router
from tests.support.triton_direct import DirectTriton, triton_direct, triton_python
from tests.support.triton_models import write
from tests.support.waiting import until

pytestmark = [pytest.mark.triton, pytest.mark.asyncio(loop_scope="module")]

SOON = 10.0  # seconds
STRANGER = (("x-shoal-subject", "somebody"),)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    for model in ("twice", "once", "moved", "cold", "loaded", "traced"):
        write(models, model)
    write(models, "bad", initialize="raise ValueError('weights are missing')")
    subprocess.run([triton_python(), "-m", "compileall", "-q", models], check=True)
    return models


@pytest.fixture(scope="module")
def tritons(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, DirectTriton]]:
    run = secrets.token_hex(4)
    with (
        triton_direct(tmp_path_factory.mktemp("t0"), repository, id=f"t0-{run}") as first,
        triton_direct(tmp_path_factory.mktemp("t1"), repository, id=f"t1-{run}") as second,
    ):
        yield {one.spec.id: one for one in (first, second)}
        for one in (first, second):  # both at once: each takes its time
            one.process.terminate()


def entries() -> list[registry.CatalogEntry]:
    twice = entry("twice", 1)
    twice.model.residency.min_copies = 2
    models = [entry(model, 1) for model in ("moved", "cold", "loaded", "traced", "bad")]
    front = registry.CatalogEntry(model=registry.Model(name="models/front"))
    front.model.traffic_policy.arms.add(target="models/moved/versions/1", weight=1)
    return [twice, entry("once", 1), front, *models]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def controller(
    tritons: dict[str, DirectTriton],
) -> AsyncIterator[controller_harness.Alone]:
    servers = [Server(id_, one.address) for id_, one in tritons.items()]
    keys = {id_: one.spec.admin_secret for id_, one in tritons.items()}
    async with in_a_task(controller_harness.controller(servers, entries(), keys)) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shoal(
    controller: controller_harness.Alone,
) -> AsyncIterator[router_harness.Alone]:
    async with in_a_task(router(controller.address)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(shoal: router_harness.Alone) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(shoal.address) as one:
        yield one


def ready(controller: controller_harness.Alone, model: str) -> set[str]:
    """The servers that hold it."""
    return {
        replica.key.server
        for replica in controller.view.replicas()
        if replica.unit.model == model and replica.state is State.READY
    }


async def infer(client: Any, model: str, times: int = 1, version: str = "") -> None:
    tensor = triton.InferInput("INPUT", [2], "FP32")
    tensor.set_data_from_numpy(np.array([1.0, 2.0], np.float32))
    for _ in range(times):
        await client.infer(model, [tensor], model_version=version)


async def refusal(call: Any) -> tuple[str, str, Any]:
    """Code, text, and ErrorInfo or None of a call that must fail."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        info = error_info(tuple(error.trailing_metadata() or ()))
        return error.code().name, error.details() or "", info
    raise AssertionError(f"it was answered: {answer}")


async def on(server: DirectTriton, method: str, request: Any) -> Any:
    """The server's own answer to an administrator."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(service_pb2, f"{method}Response").FromString,
        )
        return await call(request, metadata=((ADMIN_KEY_HEADER, server.spec.admin_secret),))


def first(tritons: dict[str, DirectTriton]) -> DirectTriton:
    return next(iter(tritons.values()))


async def counts(client: Any, model: str, version: str = "") -> dict[str, int]:
    """Requests that succeeded, by version."""
    reply = await client.get_inference_statistics(model, version)
    return {row.version: row.inference_stats.success.count for row in reply.model_stats}


async def counted(client: Any, model: str, expected: dict[str, int]) -> None:
    """Triton counts a request a moment after it has answered it."""
    async with asyncio.timeout(SOON):
        while (found := await counts(client, model)) != expected:
            assert all(found[version] <= expected[version] for version in found), found
            await asyncio.sleep(0.01)


# --- ModelStatistics ------------------------------------------------------------------------------


async def test_statistics_are_merged_over_replicas(
    tritons: dict[str, DirectTriton], controller: controller_harness.Alone, client: Any
) -> None:
    await until(lambda: ready(controller, "twice") == tritons.keys())
    await infer(client, "twice", 30)
    await counted(client, "twice", {"1": 30})
    told = (await client.get_inference_statistics("twice")).model_stats
    own = []
    for server in tritons.values():
        request = service_pb2.ModelStatisticsRequest(name="twice")
        own += (await on(server, "ModelStatistics", request)).model_stats
    assert [row.inference_count for row in told] == [30]
    assert sum(row.inference_count for row in own) == 30
    assert all(row.inference_count for row in own), "both have answered"
    for part in ("success", "queue", "compute_infer"):
        ours = getattr(told[0].inference_stats, part)
        theirs = [getattr(row.inference_stats, part) for row in own]
        assert (ours.count, ours.ns) == (sum(t.count for t in theirs), sum(t.ns for t in theirs))
    assert told[0].last_inference == max(row.last_inference for row in own)
    shapes = [json_format.MessageToDict(row)["inferenceStats"].keys() for row in (*told, *own)]
    assert all(shape == shapes[0] for shape in shapes)


async def test_statistics_outlive_a_reload(
    tritons: dict[str, DirectTriton], controller: controller_harness.Alone, client: Any
) -> None:
    await infer(client, "once", 3, "1")
    await counted(client, "once", {"1": 3})
    await client.unload_model("once")
    assert ready(controller, "once") == set()
    assert await counts(client, "once") == {"1": 3}
    await infer(client, "once", 2, "1")
    await counted(client, "once", {"1": 5})
    assert await counts(client, "once", "1") == {"1": 5}
    (holder,) = ready(controller, "once")
    request = service_pb2.ModelStatisticsRequest(name="once", version="1")
    own = (await on(tritons[holder], "ModelStatistics", request)).model_stats
    assert own[0].inference_count == 2, "Triton itself has forgotten the rest"


async def test_all_statistics_are_of_what_has_been_resident(client: Any) -> None:
    await infer(client, "moved")
    rows = (await client.get_inference_statistics()).model_stats
    names = [(row.name, row.version) for row in rows]
    assert ("moved", "1") in names
    assert names == sorted(names)
    assert "bad" not in {row.name for row in rows}


@pytest.mark.parametrize(("model", "version"), [("nope", ""), ("nope", "1"), ("moved", "9")])
async def test_statistics_of_what_is_not_there(
    tritons: dict[str, DirectTriton],
    shoal: router_harness.Alone,
    client: Any,
    model: str,
    version: str,
) -> None:
    await infer(client, "moved")
    request = service_pb2.ModelStatisticsRequest(name=model, version=version)
    code, text, info = await refusal(shoal.stub.ModelStatistics(request))
    direct = first(tritons)
    for server in tritons.values():
        index = await asyncio.to_thread(server.index, "moved")
        direct = server if any(row.state == "READY" for row in index) else direct
    own_code, own_text, _ = await refusal(on(direct, "ModelStatistics", request))
    assert code == own_code
    assert text.startswith(own_text)
    assert info is not None


async def test_what_perf_analyzer_asks_of_a_model_that_is_not_resident(
    controller: controller_harness.Alone, shoal: router_harness.Alone, client: Any
) -> None:
    assert ready(controller, "cold") == set()
    metadata = await client.get_server_metadata()
    assert "statistics" in metadata.extensions
    assert await client.is_model_ready("cold")
    assert (await client.get_model_metadata("cold")).inputs[0].name == "INPUT"
    assert (await client.get_model_config("cold")).config.name == "cold"
    assert await counts(client, "cold") == {"1": 0}
    assert ready(controller, "cold") == set(), "asking loads nothing"
    await infer(client, "cold", 4)
    await counted(client, "cold", {"1": 4})


async def test_a_plain_client_reads_statistics(shoal: router_harness.Alone, client: Any) -> None:
    await infer(client, "moved")

    def read() -> Any:
        with triton.InferenceServerClient(shoal.address) as plain:
            return plain.get_inference_statistics("moved", as_json=True)

    (row,) = (await asyncio.to_thread(read))["model_stats"]
    assert row["name"] == "moved"
    assert int(row["inference_count"]) >= 1


# --- RepositoryModelLoad, RepositoryModelUnload, RepositoryIndex ----------------------------------


async def test_load_returns_when_it_is_ready_and_unload_when_it_is_gone(
    controller: controller_harness.Alone, client: Any
) -> None:
    await client.load_model("loaded")
    assert ready(controller, "loaded")
    await client.load_model("loaded")
    await client.unload_model("loaded", unload_dependents=True)
    assert ready(controller, "loaded") == set()
    await client.unload_model("loaded")
    assert await client.is_model_ready("loaded"), "it may be asked for: it comes back"


async def test_load_of_a_model_that_stands_for_others_loads_those(
    controller: controller_harness.Alone, client: Any
) -> None:
    await client.unload_model("moved")
    assert ready(controller, "moved") == set()
    await client.load_model("front")
    assert ready(controller, "moved")


async def test_load_of_an_unknown_model_fails_as_in_triton(
    tritons: dict[str, DirectTriton], shoal: router_harness.Alone
) -> None:
    request = service_pb2.RepositoryModelLoadRequest(model_name="nope")
    code, text, info = await refusal(shoal.stub.RepositoryModelLoad(request))
    own_code, own_text, _ = await refusal(on(first(tritons), "RepositoryModelLoad", request))
    assert (code, info.reason) == (own_code, "NOT_IN_REPOSITORY")
    assert text.startswith(own_text)


async def test_unload_of_an_unknown_model_is_as_in_triton(
    tritons: dict[str, DirectTriton], shoal: router_harness.Alone
) -> None:
    request = service_pb2.RepositoryModelUnloadRequest(model_name="nope")
    await on(first(tritons), "RepositoryModelUnload", request)
    await shoal.stub.RepositoryModelUnload(request)


async def test_a_load_that_fails_says_what_triton_says(
    tritons: dict[str, DirectTriton], shoal: router_harness.Alone
) -> None:
    request = service_pb2.RepositoryModelLoadRequest(model_name="bad")
    code, text, info = await refusal(shoal.stub.RepositoryModelLoad(request))
    own_code, own_text, _ = await refusal(on(first(tritons), "RepositoryModelLoad", request))
    assert (code, text) == (own_code, own_text)
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("load failed for model 'bad': version 1 is at UNAVAILABLE state: ")
    assert info.reason == "LOAD_REFUSED"


@pytest.mark.parametrize(
    "more",
    [{"config": "{}"}, {"config": "{}", "files": {"file:1/model.py": b"x = 1"}}],
)
async def test_what_a_client_brings_is_not_loaded(
    controller: controller_harness.Alone, client: Any, more: dict[str, Any]
) -> None:
    with pytest.raises(triton.InferenceServerException) as refused:
        await client.load_model("cold", **more)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert refused.value.message().startswith("unrecognized load parameter '")
    assert "shoal register" in refused.value.message()


@pytest.mark.parametrize(
    "method", ["RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"]
)
async def test_repositories_have_no_names(
    tritons: dict[str, DirectTriton], shoal: router_harness.Alone, method: str
) -> None:
    request = getattr(service_pb2, f"{method}Request")(repository_name="main")
    code, text, info = await refusal(getattr(shoal.stub, method)(request))
    own_code, own_text, _ = await refusal(on(first(tritons), method, request))
    assert (code, info.reason) == (own_code, "REPOSITORY_NAMED")
    assert text.startswith(own_text)


async def test_the_index_lists_what_is_servable(shoal: router_harness.Alone, client: Any) -> None:
    request = service_pb2.RepositoryModelLoadRequest(model_name="bad")
    await refusal(shoal.stub.RepositoryModelLoad(request))
    await until(lambda: not shoal.watch.table.routes["bad"].versions[1].servable)
    everything = {row.name: row.state for row in (await client.get_model_repository_index()).models}
    assert everything["cold"] == "READY"
    assert everything["bad"] == "UNAVAILABLE"
    reply = await shoal.stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True))
    assert "bad" not in {row.name for row in reply.models}


# --- TraceSetting, LogSettings --------------------------------------------------------------------


async def test_trace_settings_reach_every_server(
    tritons: dict[str, DirectTriton], client: Any
) -> None:
    reply = await client.update_trace_settings(settings={"trace_rate": "7"})
    try:
        assert list(reply.settings["trace_rate"].value) == ["7"]
        for server in tritons.values():
            own = await on(server, "TraceSetting", service_pb2.TraceSettingRequest())
            assert list(own.settings["trace_rate"].value) == ["7"]
        one = service_pb2.TraceSettingRequest()
        one.settings["trace_rate"].value.append("8")
        await on(first(tritons), "TraceSetting", one)
        told = (await client.get_trace_settings()).settings["trace_rate"].value
        assert set(told) == {"7", "8"}
    finally:
        await client.update_trace_settings(settings={"trace_rate": None})
    own = await on(first(tritons), "TraceSetting", service_pb2.TraceSettingRequest())
    assert (await client.get_trace_settings()).settings == own.settings


async def test_trace_settings_of_a_model_reach_who_holds_it(
    tritons: dict[str, DirectTriton], controller: controller_harness.Alone, client: Any
) -> None:
    assert ready(controller, "traced") == set()
    reply = await client.update_trace_settings("traced", {"trace_count": "5"})
    assert list(reply.settings["trace_count"].value) == ["5"]
    (holder,) = ready(controller, "traced")
    own = await on(
        tritons[holder], "TraceSetting", service_pb2.TraceSettingRequest(model_name="traced")
    )
    assert list(own.settings["trace_count"].value) == ["5"]


@pytest.mark.parametrize(
    ("model", "setting", "value"),
    [("", "trace_file", "/tmp/x"), ("", "trace_rate", "often"), ("nope", "trace_rate", "1")],
)
async def test_trace_settings_that_no_server_takes(
    tritons: dict[str, DirectTriton],
    shoal: router_harness.Alone,
    model: str,
    setting: str,
    value: str,
) -> None:
    request = service_pb2.TraceSettingRequest(model_name=model)
    request.settings[setting].value.append(value)
    ours = await refusal(shoal.stub.TraceSetting(request))
    assert ours == await refusal(on(first(tritons), "TraceSetting", request))


async def test_log_settings_reach_every_server(
    tritons: dict[str, DirectTriton], client: Any
) -> None:
    reply = await client.update_log_settings({"log_verbose_level": 1, "log_info": False})
    try:
        assert reply.settings["log_verbose_level"].uint32_param == 1
        for server in tritons.values():
            own = await on(server, "LogSettings", service_pb2.LogSettingsRequest())
            assert own.settings["log_verbose_level"].uint32_param == 1
        one = service_pb2.LogSettingsRequest()
        one.settings["log_verbose_level"].uint32_param = 2
        one.settings["log_info"].bool_param = True
        one.settings["log_format"].string_param = "ISO8601"
        await on(first(tritons), "LogSettings", one)
        told = (await client.get_log_settings()).settings
        assert told["log_verbose_level"].uint32_param == 2
        assert told["log_info"].bool_param
        assert set(told["log_format"].string_param.split(", ")) == {"default", "ISO8601"}
    finally:
        await client.update_log_settings(
            {"log_verbose_level": 0, "log_info": True, "log_format": "default"}
        )
    own = await on(first(tritons), "LogSettings", service_pb2.LogSettingsRequest())
    assert (await client.get_log_settings()).settings == own.settings


async def test_a_server_that_did_not_take_a_setting_is_named(
    tritons: dict[str, DirectTriton],
) -> None:
    direct = first(tritons)
    servers = [Server(direct.spec.id, direct.address), Server("gone", "127.0.0.1:1")]
    keys = {direct.spec.id: direct.spec.admin_secret, "gone": "x"}
    async with (
        controller_harness.controller(servers, [], keys) as alone,
        router(alone.address) as running,
    ):
        await until(lambda: alone.view.servers[direct.spec.id].accepting)
        request = service_pb2.LogSettingsRequest()
        request.settings["log_info"].bool_param = True
        code, text, info = await refusal(running.stub.LogSettings(request))
        assert (code, info.reason) == ("UNAVAILABLE", "SERVERS_DISAGREE")
        assert text.startswith("LogSettings failed on server gone: ")
        assert f"Done on: {direct.spec.id}" in text
        told = await running.stub.LogSettings(service_pb2.LogSettingsRequest())
        assert told.settings["log_info"].bool_param, "what can be reached is read"


async def test_without_a_server_there_is_nothing_to_read() -> None:
    async with (
        controller_harness.controller([Server("gone", "127.0.0.1:1")], [], {"gone": "x"}) as alone,
        router(alone.address) as running,
    ):
        request = service_pb2.LogSettingsRequest()
        code, text, info = await refusal(running.stub.LogSettings(request))
        assert (code, info.reason) == ("UNAVAILABLE", "NO_SERVER_ANSWERS")
        assert "gone" in text


@pytest.mark.parametrize(
    ("more", "code", "reason"),
    [
        ({}, "INVALID_ARGUMENT", "INVALID_FIELD"),
        (
            {"call": wire.SERVER_CALL_LOG_SETTINGS, "servers": ["none"]},
            *("NOT_FOUND", "SERVER_NOT_FOUND"),
        ),
    ],
)
async def test_calls_that_no_server_can_be_asked(
    controller: controller_harness.Alone, more: dict[str, Any], code: str, reason: str
) -> None:
    found, _, info = await refusal(controller.stub.CallServers(wire.CallServersRequest(**more)))
    assert (found, info.reason) == (code, reason)


# --- who may, and what there is -------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"]
)
async def test_administration_is_for_administrators(
    controller: controller_harness.Alone, method: str
) -> None:
    async with router(controller.address, proxies=("127.0.0.1",)) as running:
        request = getattr(service_pb2, f"{method}Request")()
        code, text, info = await refusal(getattr(running.stub, method)(request, metadata=STRANGER))
        assert (code, info.reason) == ("PERMISSION_DENIED", "ADMIN_REQUIRED")
        assert method in text
        await running.stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), metadata=STRANGER)


async def test_only_extensions_that_are_there_are_told_of(
    tritons: dict[str, DirectTriton], controller: controller_harness.Alone, client: Any
) -> None:
    told = list((await client.get_server_metadata()).extensions)
    own = list(
        (await on(first(tritons), "ServerMetadata", service_pb2.ServerMetadataRequest())).extensions
    )
    assert told == [extension for extension in own if extension in told]
    assert set(own) - set(told) == {"system_shared_memory", "cuda_shared_memory"}
    async with router(controller.address, shared_memory=True, grpc_port=6) as running:
        everything = await running.stub.ServerMetadata(service_pb2.ServerMetadataRequest())
    assert list(everything.extensions) == own


async def test_without_a_controller_it_is_said_what_to_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller_calls, "PATIENCE_SECONDS", 0.1)
    async with AsyncExitStack() as acting:
        alone = await acting.enter_async_context(controller_harness.controller())
        async with router(alone.address) as running:
            await acting.aclose()
            await until(lambda: running.watch.acting is None)
            request = service_pb2.ModelStatisticsRequest()
            code, text, info = await refusal(running.stub.ModelStatistics(request))
    assert (code, info.reason) == ("UNAVAILABLE", "NO_CONTROLLER")
    assert "repeat GetModelStatistics" in text
