"""Every command of `shoal` against a real stack."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from shoal.client import CallFailed, connect
from shoal.registry.v1.registry_service_pb2 import DeleteModelRequest
from tests.support.cli import Done, shoal
from tests.support.stack import EXAMPLES, Fleet, example

pytestmark = pytest.mark.triton

ROOT = Path(__file__).parents[2]

Run = Callable[..., Done]


@pytest.fixture
def variables(stack: Fleet) -> dict[str, str]:
    return {
        "SHOAL_ROUTER": stack.router_grpc,
        "SHOAL_CONTROLLER": stack.controller_address,
        "SHOAL_REGISTRY": stack.registry_address,
        "SHOAL_OTLP_HTTP_PORT": stack.otlp_http.rpartition(":")[2],
        "COLUMNS": "200",
    }


@pytest.fixture
def run(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("SHOAL_ANNOUNCE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return shoal


@pytest.fixture
def tripler(stack: Fleet, tmp_path: Path) -> Iterator[Path]:
    """A folder to register as model `tripler`; no model of that name is left behind."""
    folder = tmp_path / "tripler"
    shutil.copytree(EXAMPLES / "multiplier", folder)
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(config.replace('"multiplier"', '"tripler"'))
    yield folder
    with connect(registry=stack.registry_address) as client, suppress(CallFailed):
        client.call(client.registry.DeleteModel, DeleteModelRequest(name="models/tripler"))


@contextmanager
def following(variables: dict[str, str], *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that goes on until Ctrl-C, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", *arguments],
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Python takes no Ctrl-C where its parent ignores it, as a shell's background jobs do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def interrupted(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status and standard error after Ctrl-C."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    return process.returncode, said


# --- what there is --------------------------------------------------------------------------------


def test_status_is_ready(run: Run) -> None:
    done = run("status", "--wait", 30, "--json")
    assert done.status == 0, done.out
    assert done.json["ready"]
    assert {part["name"]: part["state"] for part in done.json["parts"]} == dict.fromkeys(
        ("registry", "controller", "router", "collector"), "ready"
    )
    (server,) = done.json["servers"]
    assert (server["name"], server["state"], server["max_models"]) == (
        *("servers/triton-0", "HEALTHY"),
        3,
    )
    assert server["memory_budget"]["ram"] > 0
    assert "triton-0" in run("status").out


def test_models_and_replicas_show_what_is_resident(run: Run) -> None:
    loaded = run("load", "multiplier:1", "--json")
    assert (loaded.status, loaded.err) == (0, "")
    replica = loaded.json["replica"]
    assert (replica["name"], replica["state"]) == (
        "servers/triton-0/replicas/multiplier:1",
        "READY",
    )

    names = [one["name"] for one in run("replicas", "multiplier:1", "--json").json["replicas"]]
    assert names == [replica["name"]]
    rows = [row.split()[:3] for row in run("replicas").out.splitlines()]
    assert ["multiplier:1", "triton-0", "READY"] in rows

    models = {model["name"]: model for model in run("models", "--json").json["models"]}
    assert models.keys() >= {"models/densenet_onnx", "models/file_type", "models/multiplier"}
    first, second = models["models/multiplier"]["versions"]
    assert [one["state"] for one in first["replicas"]] == ["READY"]
    assert first["name"] == "models/multiplier/versions/1"
    assert second["name"] == "models/multiplier/versions/2"
    (ensemble,) = models["models/file_type"]["versions"]
    assert ensemble["ensemble"]
    assert "models/magika/versions/1" in ensemble["requires"]


# --- asking ---------------------------------------------------------------------------------------


def test_numbers_are_asked_and_answered(run: Run) -> None:
    done = run("infer", "multiplier:1", "--input", "INPUT=0,1.5,-2")
    assert (done.status, done.err) == (0, "")
    first, output, values = done.out.splitlines()
    assert first.startswith("multiplier:1 answered in ")
    assert (output, values) == ("OUTPUT  FP32 [1, 3]", "  0, 3, -4")

    answer = run("infer", "multiplier", "--input", "INPUT=2", "--output", "OUTPUT", "--json").json
    assert answer.pop("milliseconds") > 0
    assert answer == {
        "model_name": "multiplier",
        "model_version": "2",
        "outputs": [{"name": "OUTPUT", "datatype": "FP32", "shape": [1, 1], "data": [20.0]}],
        "trace_id": None,
    }


def test_an_image_from_a_file(run: Run, tmp_path: Path) -> None:
    shown = example("densenet_onnx")
    np.save(tmp_path / "image.npy", shown.inputs["data_0"])
    given = ("--input", f"data_0={tmp_path / 'image.npy'}")
    answer = run("infer", "densenet_onnx", *given, "--json").json
    (output,) = answer["outputs"]
    data = np.array(output["data"], np.float32).reshape(output["shape"])
    assert shown.mismatches({output["name"]: data}) == []
    assert "the 5 largest: [" in run("infer", "densenet_onnx", *given).out

    np.save(tmp_path / "image.npy", shown.inputs["data_0"].astype(np.float64))
    done = run("infer", "densenet_onnx", *given)
    assert done.status == 2
    assert "float64" in done.err


def test_text_and_files_through_models_and_ensembles(run: Run, tmp_path: Path) -> None:
    done = run("infer", "text_stats", "--input", "TEXT=a shoal of fish", "--input", "TEXT=")
    assert '"shoal", ""' in done.out
    source = tmp_path / "source"
    source.write_text("import os\nprint(os.name)\n")
    done = run("infer", "file_type", "--input", f"CONTENT=@{source}")
    assert (done.status, done.err) == (0, "")
    assert '"python"' in done.out


def test_what_triton_refuses_is_said_in_its_words(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    done = run("infer", "densenet_onnx", "--input", f"data_0={tmp_path / 'x.npy'}")
    assert (done.status, done.out) == (1, "")
    assert "unexpected shape for input 'data_0'" in done.err
    assert done.err.endswith("[INVALID_ARGUMENT]\n")


def test_what_is_not_there(run: Run) -> None:
    done = run("infer", "nope", "--input", "x=1")
    assert (done.status, done.out) == (1, "")
    assert "[MODEL_NOT_FOUND]" in done.err
    assert "[VERSION_NOT_FOUND]" in run("infer", "multiplier:9", "--input", "x=1").err
    assert "[INVALID_NAME]" in run("infer", "../x", "--input", "x=1").err
    assert "[MODEL_NOT_FOUND]" in run("load", "nope").err
    assert "[MODEL_NOT_FOUND]" in run("explain", "nope").err


def test_without_inputs_it_says_which(run: Run) -> None:
    done = run("infer", "multiplier")
    assert done.status == 2
    assert "INPUT FP32 [-1, -1]" in done.err


def test_a_deadline_shorter_than_the_load(run: Run) -> None:
    assert run("evict", "text_stats").status == 0
    done = run("infer", "text_stats", "--input", "TEXT=a", "--timeout", 0.02)
    assert (done.status, done.out) == (3, "")
    assert run("load", "text_stats").status == 0


def test_a_trace_is_asked_for_and_shown(run: Run) -> None:
    answer = run("infer", "multiplier:1", "--input", "INPUT=1", "--trace", "--json").json
    done = run("trace", answer["trace_id"], "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json["trace_id"] == answer["trace_id"]
    names = {span["name"] for span in done.json["spans"]}
    assert names >= {"inference.GRPCInferenceService/ModelInfer", "forward"}
    shown = run("trace", answer["trace_id"]).out
    assert shown.startswith(f"trace {answer['trace_id']} ")
    assert "forward" in shown
    assert run("trace", "--last").out.startswith("trace ")


def test_a_trace_that_was_never_made(run: Run) -> None:
    done = run("trace", "ab" * 16, "--wait", 0)
    assert (done.status, done.out) == (1, "")
    assert "was not received" in done.err


# --- moving ---------------------------------------------------------------------------------------


def test_a_pinned_version_stays_until_it_is_unpinned(run: Run) -> None:
    pinned = run("pin", "multiplier:1")
    try:
        assert (pinned.status, pinned.err) == (0, "")
        assert pinned.out.startswith("multiplier:1 is READY on triton-0")
        assert pinned.out.endswith("pinned\n")
        held = run("evict", "multiplier:1")
        assert (held.status, held.out) == (1, "")
        assert "[HELD]" in held.err
    finally:
        assert run("unpin", "multiplier:1").out == "multiplier:1 is not pinned\n"
    assert run("evict", "multiplier:1").out == "evicted multiplier:1 from triton-0\n"
    assert run("evict", "multiplier:1").out == "multiplier:1 was not resident\n"
    kinds = [event["kind"] for event in run("events", "multiplier:1", "--json").json["events"]]
    assert kinds[:4] == ["UNLOADED", "UNLOADING", "EVICTING", "UNPINNED"]
    assert "PINNED" in kinds


def test_explain_says_where_a_request_goes_and_what_happened(run: Run) -> None:
    run("load", "multiplier:2")
    document = run("explain", "multiplier", "--json").json
    assert (document["model"], document["version"]) == ("multiplier", "")
    (arm,) = document["arms"]
    assert arm == {"model": "multiplier", "version": 2, "share": 1.0, "servers": ["triton-0"]}
    assert any("resident on triton-0" in step for step in document["steps"])
    assert "models/multiplier/versions/2" in {one["version"] for one in document["replicas"]}
    assert 0 < len(document["events"]) <= 20
    run("evict", "multiplier:2")
    shown = run("explain", "multiplier:2", "-n", 1).out
    assert "1. version '2' was asked for: multiplier:2" in shown
    assert "no replicas" in shown
    assert shown.splitlines()[-1].split()[1] == "UNLOADED"


def test_explain_counts_in_what_the_request_says(run: Run) -> None:
    run("load", "multiplier:1")
    document = run("explain", "multiplier:1", "--header", "X-Shoal-Priority=high", "--json").json
    assert (document["priority"], document["tenant"]) == ("high", "default")
    document = run("explain", "multiplier:1", "--sequence", "7", "--json").json
    assert "the sequence is at home on triton-0" in document["steps"][1]
    assert document["priority"] == "normal"
    refused = run("explain", "multiplier", "--header", "x-shoal-priority=soon")
    assert "'soon' is none of high, normal, low" in refused.err
    assert "'soon' is not KEY=VALUE" in run("explain", "multiplier", "--header", "soon").err


def test_what_is_registered_answers_at_once(run: Run, tripler: Path) -> None:
    ask = ("--input", "INPUT=4", "--json")
    assert run("register", tripler, "--name", "tripler", "--version", 1).err == ""
    assert run("infer", "tripler", *ask).json["outputs"][0]["data"] == [8.0]
    assert run("register", tripler, "--name", "tripler", "--pending").out.startswith(
        "registered tripler:2: PENDING"
    )
    assert run("infer", "tripler", *ask).json["model_version"] == "1"
    assert run("infer", "tripler:2", *ask).json["outputs"][0]["data"] == [40.0]
    assert run("approve", "tripler:2").err == ""
    assert run("infer", "tripler", *ask).json["model_version"] == "2"
    assert run("alias", "tripler", "stable", 1).err == ""
    assert run("infer", "tripler:stable", *ask).json["model_version"] == "1"
    assert run("load", "tripler:stable").out.startswith("tripler:1 is READY")
    assert run("reject", "tripler:2").err == ""
    assert run("infer", "tripler", *ask).json["model_version"] == "1"
    assert run("traffic", "tripler", "stable=1").out == "tripler: 100% to tripler:stable\n"


# --- until Ctrl-C ---------------------------------------------------------------------------------


def test_replicas_are_watched_until_ctrl_c(run: Run, variables: dict[str, str]) -> None:
    run("load", "multiplier:1")
    with following(variables, "replicas", "--watch", "--json") as process:
        assert process.stdout
        for _ in range(2):
            assert json.loads(process.stdout.readline())["replicas"]
        assert interrupted(process) == (130, "")


def test_events_are_followed_until_ctrl_c(run: Run, variables: dict[str, str]) -> None:
    run("load", "text_stats")
    run("evict", "text_stats")
    with following(variables, "events", "text_stats", "--follow", "-n", "1", "--json") as process:
        assert process.stdout
        before = json.loads(process.stdout.readline())
        run("load", "text_stats")
        coming = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert [event["kind"] for event in coming] == ["QUEUED", "LOADING", "READY"]
        assert coming[0]["sequence"] > before["sequence"]
        assert {event["version"] for event in coming} == {"models/text_stats/versions/1"}
        assert interrupted(process) == (130, "")
