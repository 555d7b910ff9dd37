"""What a process writes to its log."""

import json
import logging
import os
import pty
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from services.common import logs
from services.common.masking import MASK, masked
from services.common.variables import BadVariable

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hunter2hunter2"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """The log lines since the last call; logging is put back as it was afterwards."""
    for name in ("SHOAL_LOG_FORMAT", "SHOAL_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("uvicorn.access").setLevel(logging.NOTSET)
    structlog.reset_defaults()


def test_a_line_says_when_how_grave_where_and_what(lines: Lines) -> None:
    logs.configure("router")
    structlog.get_logger("x").info("loaded", model="m", version=2)
    (line,) = lines()
    timestamp = line.pop("timestamp")
    assert line == {
        "level": "info",
        "service": "router",
        "event": "loaded",
        "model": "m",
        "version": 2,
    }
    assert timestamp.endswith("Z")
    assert len(timestamp) == len("2026-01-01T00:00:00.000Z")


def test_the_stamp_cannot_be_overwritten(lines: Lines) -> None:
    logs.configure("router")
    structlog.get_logger().warning("dropped", service="triton", level="info", timestamp=0)
    (line,) = lines()
    assert (line["service"], line["level"]) == ("router", "warning")
    assert line["timestamp"] != 0


def test_a_line_names_the_current_span(lines: Lines) -> None:
    logs.configure("router")
    log = structlog.get_logger()
    context = trace.SpanContext(0xAB, 0xCD, is_remote=False)
    with trace.use_span(trace.NonRecordingSpan(context)):
        log.info("inside")
        logging.getLogger("library").warning("inside")
    log.info("outside")
    *inside, outside = lines()
    assert [(line["trace_id"], line["span_id"]) for line in inside] == [
        (f"{0xAB:032x}", f"{0xCD:016x}")
    ] * 2
    assert "trace_id" not in outside


def test_libraries_come_out_the_same_way(lines: Lines) -> None:
    logs.configure("registry")
    logging.getLogger("library.part").info("Going on %s -> %s", "a", "b")
    logging.getLogger("uvicorn.access").info("GET / 200")
    logging.getLogger("grpc").debug("too much")
    warnings.showwarning("old", DeprecationWarning, "file.py", 1)
    line, warning = lines()
    del line["timestamp"]
    assert line == {
        "level": "info",
        "service": "registry",
        "event": "Going on a -> b",
        "logger": "library.part",
    }
    assert warning["logger"] == "py.warnings"


def test_configuring_again_replaces_and_does_not_add(lines: Lines) -> None:
    logs.configure("router")
    log = structlog.get_logger()
    log.info("first")
    logs.configure("controller")
    log.info("second")
    logging.getLogger("library").info("third")
    assert [line["service"] for line in lines()] == ["router", "controller", "controller"]


def test_exceptions_are_one_line(lines: Lines) -> None:
    logs.configure("router")
    try:
        raise RuntimeError(f"postgresql://shoal:{SECRET}@db/shoal is gone")
    except RuntimeError:
        structlog.get_logger().exception("failed")
        logging.getLogger("library").exception("failed")
    for line in lines():
        assert line["level"] == "error"
        assert "Traceback" in line["exception"]
        assert "shoal:***@db" in line["exception"]


@pytest.mark.parametrize(
    "fields",
    [
        {"authorization": f"Bearer {SECRET}"},
        {"triton-grpc-protocol-admin-key": SECRET},
        {"triton_admin_key": SECRET},
        {"headers": {"Authorization": SECRET, "cookie": [SECRET]}},
        {"metadata": (("a", "b"), ("x-api-key", SECRET))},
        {"metadata": [["password", SECRET]]},
        {"database": f"postgresql+asyncpg://shoal:{SECRET}@db:5432/shoal"},
        {"command": ["tritonserver", f"--grpc-restricted-protocol=trace:admin-key={SECRET}"]},
        {"text": f"authorization: Bearer {SECRET}"},
        {"text": f"password='{SECRET}'"},
        {"nested": [{"deep": {"client_secret": SECRET}}]},
        {"token": SECRET, "refresh_token": SECRET},
    ],
)
def test_secrets_never_appear(
    lines: Lines, capsys: pytest.CaptureFixture[str], fields: dict[str, Any]
) -> None:
    logs.configure("router")
    structlog.get_logger().error("seen", **fields)
    logging.getLogger("library").error("seen %s", json.dumps({"password": SECRET}))
    written = capsys.readouterr().err
    assert len(written.splitlines()) == 2
    assert SECRET not in written
    assert MASK in written


def test_what_only_looks_like_a_secret_stays() -> None:
    plain = {"page_token": "abc", "max_tokens": 3, "key": "k", "url": "http://host:80/a@b"}
    assert masked(plain) == plain


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    )
)
def test_anything_can_be_masked_and_written(value: object) -> None:
    json.dumps(masked(value), default=repr)


def test_filtered_levels_are_not_written(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_LOG_LEVEL", "Warning")
    logs.configure("router")
    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines()] == ["loud"]


@pytest.mark.parametrize("name", ["SHOAL_LOG_LEVEL", "SHOAL_LOG_FORMAT"])
def test_unknown_values_are_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "loud")
    with pytest.raises(BadVariable, match=f"{name}='loud'"):
        logs.configure("router")


def test_nobody_reading_the_log_stops_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = _process("log.info('lost'); print('went on')", stderr=writer)
    os.close(writer)
    assert ended.stdout == "went on\n"


@pytest.mark.parametrize(("form", "is_json"), [(None, False), ("console", False), ("json", True)])
def test_a_terminal_gets_text_unless_json_is_asked_for(form: str | None, is_json: bool) -> None:
    terminal, stderr = pty.openpty()
    ended = _process("log.info('loaded', model='m')", stderr=stderr, form=form)
    os.close(stderr)
    written = os.read(terminal, 4096).decode()
    os.close(terminal)
    assert ended.returncode == 0
    assert "loaded" in written
    assert written.startswith("{") == is_json
    assert ("\x1b[" in written) != is_json


def test_a_file_gets_json() -> None:
    ended = _process("log.info('loaded')", stderr=subprocess.PIPE)
    assert json.loads(ended.stderr)["event"] == "loaded"


def _process(code: str, stderr: int, form: str | None = None) -> subprocess.CompletedProcess[str]:
    prelude = "import structlog\nfrom services.common import logs\nlogs.configure('router')\n"
    environment = {name: value for name, value in os.environ.items() if "SHOAL" not in name}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{prelude}log = structlog.get_logger()\n{code}"],
        cwd=ROOT,
        env={**environment, **({"SHOAL_LOG_FORMAT": form} if form else {}), "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=30,
        check=False,
    )
