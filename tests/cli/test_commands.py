"""Commands against a real Registry without a Controller and a Router."""

import io
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.embedded.settings import StackSettings
from shoal.cli.__main__ import COMMANDS
from tests.support.cli import (
    NO_CONTROLLER,
    NO_REGISTRY,
    NO_ROUTER,
    Shell,
    registry_alone,
    shoal,
)
from tests.support.registry import python_model


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SHOAL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Shell]:
    """A shell whose Registry has model m with versions 1 and 2."""
    python_model(tmp_path / "repo", "m", (1, 2))
    async with registry_alone(tmp_path / "data", repositories=(tmp_path / "repo",)) as shell:
        yield shell


async def test_models_are_listed_while_only_the_registry_is_there(run: Shell) -> None:
    done = await run("models", "--json")
    assert done.status == 0
    assert "cannot tell what is resident: the Controller at" in done.err
    (model,) = done.json["models"]
    assert (model["name"], model["default_version"], model["aliases"]) == ("models/m", 2, {})
    first, second = model["versions"]
    assert first["name"] == "models/m/versions/1"
    assert (second["state"], second["memory_source"], second["replicas"]) == (
        *("APPROVED", "unknown"),
        None,
    )
    heading, *rows = (await run("models")).out.splitlines()
    assert heading.split() == ["model", "version", "state", "resident", "memory", "notes"]
    assert [row.split() for row in rows] == [
        ["m", "1", "APPROVED", "?"],
        ["m", "2*", "APPROVED", "?"],
    ]


async def test_a_repository_is_imported_and_imported_again(run: Shell, tmp_path: Path) -> None:
    more = tmp_path / "more"
    model = python_model(more, "a", (1, 2))
    python_model(more, "b")
    done = await run("import", more)
    assert (done.status, done.out) == (0, "imported 3, unchanged 0\n")
    assert "the Router does not follow it yet" in done.err

    (model / "1" / "model.py").write_text("# changed\n")
    (more / "b" / "1" / "model.py").unlink()
    for number in range(6):
        (more / f"empty{number}").mkdir()
    done = await run("import", more)
    first, second, *reasons, last = done.out.splitlines()
    assert (done.status, first, second) == (1, "imported 1, unchanged 1", "refused 7:")
    assert reasons[0] == "  b:1: its version folder has no model.py"
    assert reasons[1].startswith(f"  {more / 'empty0'}: not a model: it has no config.pbtxt")
    assert (len(reasons), last) == (5, "  and 2 more: see `shoal models`")

    done = await run("import", more, "--json")
    assert done.json.keys() == {"versions", "changed", "problems"}
    assert (len(done.json["versions"]), done.json["changed"]) == (3, [])
    listed = await run("models", "--json")
    assert listed.json["problems"] == done.json["problems"]
    table = (await run("models")).out.splitlines()
    heading = next(number for number, line in enumerate(table) if line.startswith("not imported"))
    assert table[heading + 1].startswith(f"{more / 'empty0'}")

    nowhere = await run("import", tmp_path / "nix")
    assert (nowhere.status, nowhere.out) == (1, "")
    assert "No such file or directory" in nowhere.err


async def test_a_version_is_registered(run: Shell, tmp_path: Path) -> None:
    source = python_model(tmp_path / "more", "n")
    done = await run(
        "register", source, "--name", "n", "--pending", "--memory", "ram=64MiB", "--json"
    )
    assert done.status == 0
    assert "the Router does not follow it yet: the Router at" in done.err
    version = done.json["version"]
    assert (version["name"], version["state"]) == ("models/n/versions/1", "PENDING")
    assert version["declared_memory"] == {"ram": 64 * 1024**2}
    assert (await run("approve", "n:1")).out == "n:1 is APPROVED\n"
    assert (await run("reject", "n:1", "--json")).json["version"]["state"] == "REJECTED"
    row = (await run("models")).out.splitlines()[-1]
    assert row.split() == ["n", "1", "REJECTED", "?", "64", "MiB", "memory", "declared"]


async def test_a_relative_path_is_the_caller_s(
    run: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_model(tmp_path / "more", "n")
    monkeypatch.chdir(tmp_path)
    assert (await run("register", "more/n", "--name", "n")).out.startswith(
        "registered n:1: APPROVED"
    )


async def test_what_cannot_be_served_is_refused(run: Shell, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = await run("register", empty, "--name", "n")
    assert (done.status, done.out) == (1, "registered n:1: INVALID, 0 B of files\n")
    assert done.err.startswith("shoal: n:1 cannot be served: ")


async def test_aliases(run: Shell) -> None:
    assert (await run("alias", "m", "stable", 1)).out == "m:stable is version 1\n"
    assert (await run("alias", "m", "default", 1, "--json")).json["model"]["default_version"] == 1
    assert "alias default; alias stable" in (await run("models")).out
    gone = await run("alias", "m", "stable", "--delete")
    assert (gone.status, gone.out) == (0, "m no longer has the alias stable\n")
    done = await run("approve", "m:stable")
    assert (done.status, done.out) == (1, "")
    assert "has no alias 'stable'; it has: default [VERSION_NOT_FOUND]" in done.err


async def test_traffic(run: Shell) -> None:
    await run("alias", "m", "stable", 1)
    done = await run("traffic", "m", "stable=95", "2=5")
    assert (done.status, done.out) == (0, "m: 95% to m:stable, 5% to m:2\n")
    model = (await run("traffic", "m", "m:1=1", "m=3", "--json")).json["model"]
    assert [(arm["target"], arm["weight"]) for arm in model["traffic_policy"]["arms"]] == [
        ("models/m/versions/1", 1),
        ("models/m", 3),
    ]
    assert "traffic 25% to m:1, 75% to m" in (await run("models")).out
    done = await run("traffic", "m", "--clear")
    assert done.out == "m has no traffic policy: version 2 answers\n"
    assert "MODEL_NOT_FOUND" in (await run("traffic", "m", "nope=1")).err


async def test_a_refusal_says_why_and_ends_with_1(run: Shell) -> None:
    done = await run("approve", "nope:1")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("shoal: Request for unknown model: 'nope' is not found.")
    assert done.err.endswith("[MODEL_NOT_FOUND]\n")


async def test_what_a_model_asks_of_the_fleet(run: Shell) -> None:
    done = await run("residency", "m")
    assert (done.status, done.err) == (0, "")
    heading, *rows = done.out.splitlines()
    assert heading.split() == ["setting", "value"]
    assert {row[:10] for row in rows} == {
        *("min copies", "max copies", "idle ttl  ", "preload   ", "priority  ", "requires  ")
    }
    assert all(row.endswith("not set") for row in rows)
    given = ("--min-copies", 1, "--max-copies", 3, "--idle-ttl", "10m", "--preload")
    more = ("--priority", -2, "--require", "gpu=a100", "--require", "zone=b")
    done = await run("residency", "m", *given, *more, "--json")
    assert (done.status, done.err) == (0, "")
    wanted = {
        "min_copies": 1,
        "max_copies": 3,
        "idle_ttl": 600.0,
        "preload": True,
        "priority": -2,
        "required_labels": {"gpu": "a100", "zone": "b"},
    }
    assert done.json["model"]["residency"] == wanted
    assert (await run("residency", "m", "--json")).json == done.json
    first, second = (await run("models")).out.splitlines()[1:]
    assert first.endswith(
        "min copies 1; max copies 3; idle ttl 10m00s; preload yes; priority -2; "
        "requires gpu=a100, zone=b"
    )
    assert "copies" not in second
    changed = ("--no-preload", "--idle-ttl", 0, "--require", "gpu=h200")
    unset = ("--unset", "min-copies", "--unset", "priority")
    done = await run("residency", "m", *changed, *unset)
    assert [row.split()[-1] for row in done.out.splitlines()[1:]] == [
        *("set", "3", "never", "no", "set", "gpu=h200"),
    ]
    every = ("min-copies", "max-copies", "idle-ttl", "preload", "priority", "require")
    done = await run("residency", "m", *(f"--unset={name}" for name in every), "--json")
    assert done.json["model"]["residency"] is None


async def test_a_probe_is_seen(run: Shell, tmp_path: Path) -> None:
    source = python_model(tmp_path / "more", "n")
    (source / "shoal_probe.json").write_text(
        '{"inputs": [{"name": "IN", "shape": [1], "datatype": "FP32", "data": [1]}]}'
    )
    assert (await run("register", source, "--name", "n")).status == 0
    *_, last = (await run("models")).out.splitlines()
    assert last.split() == ["n", "1*", "APPROVED", "?", "probe"]
    m, n = (await run("models", "--json")).json["models"]
    assert [one["has_probe"] for one in (*m["versions"], *n["versions"])] == [False, False, True]


async def test_what_a_model_may_not_ask(run: Shell) -> None:
    done = await run("residency", "m", "--min-copies", 3, "--max-copies", 2)
    assert (done.status, done.out) == (1, "")
    assert "2 are fewer than the min_copies of 3" in done.err
    assert "INVALID_FIELD" in (await run("residency", "m", "--require", "gpu=a 100")).err
    assert "MODEL_NOT_FOUND" in (await run("residency", "nope", "--preload")).err
    assert "MODEL_NOT_FOUND" in (await run("residency", "nope")).err


async def test_a_version_and_a_model_are_deleted(run: Shell) -> None:
    done = await run("delete", "m:1", "--yes")
    assert (done.status, done.out) == (0, "deleted m:1\n")
    assert "the Router does not follow it yet: the Router at" in done.err
    assert [row.split()[1] for row in (await run("models")).out.splitlines()[1:]] == ["2*"]
    await run("alias", "m", "live", 2)
    held = await run("delete", "m:live", "-y")
    assert (held.status, held.out) == (1, "")
    assert "alias 'live' names it" in held.err
    assert (await run("delete", "m", "-y", "--json")).json == {"deleted": "models/m"}
    assert (await run("models", "--json")).json == {"models": [], "problems": []}
    assert "MODEL_NOT_FOUND" in (await run("delete", "m", "-y")).err
    assert "INVALID_VERSION" in (await run("delete", "m:0", "-y")).err


@pytest.mark.parametrize(
    ("answer", "status", "left"), [("n\n", 1, 2), ("", 1, 2), ("\n", 1, 2), ("y\n", 0, 1)]
)
async def test_nothing_is_deleted_without_a_yes(
    run: Shell, monkeypatch: pytest.MonkeyPatch, answer: str, status: int, left: int
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    done = await run("delete", "m:1", "--json")
    assert done.status == status
    assert bool(done.out.strip()) == (status == 0)
    assert "Delete version m:1? [y/N]" in done.err
    (model,) = (await run("models", "--json")).json["models"]
    assert len(model["versions"]) == left


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("models",), "Registry"),
        (("replicas",), "Controller"),
        (("replicas", "--watch"), "Controller"),
        (("events", "--follow"), "Controller"),
        (("diagnostics",), "Controller"),
        (("load", "m"), "Controller"),
        (("explain", "m"), "Router"),
        (("infer", "m", "--input", "x=1"), "Router"),
        (("register", ".", "--name", "m"), "Registry"),
        (("residency", "m", "--preload"), "Registry"),
        (("delete", "m", "--yes"), "Registry"),
    ],
)
def test_nobody_there_ends_with_3(arguments: tuple[str, ...], part: str) -> None:
    nowhere = ("--controller", NO_CONTROLLER, "--router", NO_ROUTER)
    done = shoal("--registry", NO_REGISTRY, *nowhere, *arguments)
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith(f"shoal: the {part} at 127.0.0.1:")
    assert "(Connection refused). Start a stack with `shoal up`" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--router", "here", "models"), "--router: 'here' is not HOST:PORT"),
        (("load",), "Missing argument"),
        (("load", "m:"), "is not MODEL or MODEL:VERSION"),
        (("approve", "m"), "write MODEL:VERSION"),
        (("register", ".", "--name", "m", "--memory", "ram"), "is not a size"),
        (("traffic", "m"), "give either TARGET=WEIGHT… or --clear"),
        (("traffic", "m", "1=1", "--clear"), "give either TARGET=WEIGHT… or --clear"),
        (("traffic", "m", "1"), "is not TARGET=WEIGHT"),
        (("alias", "m", "a"), "give either VERSION or --delete"),
        (("alias", "m", "a", "1", "--delete"), "give either VERSION or --delete"),
        (("residency",), "Missing argument"),
        (("residency", "m", "--min-copies", "1001"), "less than or equal to 1000"),
        (("residency", "m", "--idle-ttl", "soon"), "'soon' is not a duration"),
        (("residency", "m", "--require", "gpu"), "'gpu' is not LABEL=VALUE"),
        (("residency", "m", "--preload", "--unset", "preload"), "preload is both given and"),
        (("residency", "m", "--unset", "all"), "'all' is not one of"),
        (("delete", "m:"), "is not MODEL or MODEL:VERSION"),
        (("trace",), "give either the ID of a trace or --last"),
        (("trace", "xyz"), "is not the ID of a trace"),
        (("no-such-command",), "No such command"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...], said: str) -> None:
    done = shoal(*arguments)
    assert (done.status, done.out) == (2, "")
    assert said in done.err


async def test_status_of_a_part_of_a_stack(run: Shell) -> None:
    done = await run("status", "--json")
    assert done.status == 3
    assert not done.json["ready"]
    assert done.json["servers"] is None
    registry, controller, router, collector = done.json["parts"]
    assert registry == {
        "name": "registry",
        "address": run.registry,
        "ready": True,
        "state": "ready",
        "detail": "",
    }
    assert (controller["state"], controller["detail"]) == ("unreachable", "Connection refused")
    assert (router["name"], router["ready"]) == ("router", False)
    assert collector["name"] == "collector"
    assert "Start a stack with `shoal up`" in (await run("status")).out


def test_status_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    began = time.monotonic()
    done = shoal("--announce", tmp_path / "absent", "status", "--wait", "0.5")
    assert time.monotonic() - began >= 0.5
    assert done.status == 3
    assert "start one with `shoal up --announce" in done.err


def test_no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_OTLP_HTTP_PORT", "1")
    done = shoal("trace", "--last")
    assert done.status == 3
    assert done.err.startswith("shoal: the collector at 127.0.0.1:1 cannot be reached")
    monkeypatch.setenv("SHOAL_OTLP_HTTP_PORT", "0")
    assert shoal("trace", "--last").status == 3


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_help_and_json(path: str) -> None:
    command = path.rpartition(":")[2].rstrip("_").replace("_", "-")
    done = shoal(command, "--help")
    assert done.status == 0
    assert ("--json" in done.out) == (command not in ("up", "setup-triton"))


def test_with_the_client_alone_the_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "from shoal.cli.__main__ import main; sys.exit(main(['models']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 69
    assert done.stderr.endswith("(typer is missing): pip install 'shoal[cli]'\n")


def test_the_help_of_up_names_the_default_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    shown = shoal("up", "--help").out
    for name in (
        *("servers", "controllers", "router_workers", "trace_ratio"),
        *("router_grpc_port", "router_http_port", "registry_port", "registry_metrics_port"),
        *("controller_port", "controller_metrics_port", "otlp_grpc_port", "otlp_http_port"),
    ):
        default = StackSettings.model_fields[name].default
        option = f"--{name.replace('_', '-')} "
        (line,) = [line for line in shown.splitlines() if option in line]
        assert f"({default})" in line
