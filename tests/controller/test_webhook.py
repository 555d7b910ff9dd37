"""Events posted to a real HTTP server."""

import asyncio
import base64
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any

import pytest
from google.protobuf import json_format
from prometheus_client import REGISTRY
from pydantic import ValidationError
from structlog.testing import capture_logs

from services.controller.core.entities import Unit
from services.controller.core.events import Kind, Record
from services.controller.settings import Settings
from services.controller.telemetry import journal as journal_module
from services.controller.telemetry.journal import Journal
from services.controller.telemetry.webhook import CONTENT_TYPE, Webhook, cloud_event
from shoal.controller.v1 import types_pb2

SECONDS = 10.0
SOURCE = "/shoal/controllers/controller"
SECRET = "pa55:w/rd"
URL_SECRET = "t0ken"


@dataclass
class Receiver:
    """`statuses`: of its next answers, 204 when they are used up. `held`: nothing is answered while
    it is not set."""

    statuses: list[int] = field(default_factory=list)
    requests: "SimpleQueue[tuple[str, dict[str, str], Any]]" = field(default_factory=SimpleQueue)
    held: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def __post_init__(self) -> None:
        self.held.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    async def next(self) -> Any:
        """The body of the next request."""
        return (await self.request())[2]

    async def request(self) -> tuple[str, dict[str, str], Any]:
        return await asyncio.to_thread(self.requests.get, timeout=SECONDS)


@contextmanager
def receiving(receiver: Receiver, port: int = 0) -> Iterator[None]:
    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.held.wait(SECONDS)
            status = receiver.statuses.pop(0) if receiver.statuses else 204
            receiver.requests.put((self.path, dict(self.headers), body))
            self.send_response(status)
            self.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
            self.end_headers()

        def log_message(self, *about: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Answers) as server:
        receiver.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Receiver()
    with receiving(found):
        yield found


@asynccontextmanager
async def posting(url: str, journal: Journal) -> AsyncIterator[None]:
    webhook = Webhook(url, journal, SOURCE, retry=(0.01, 0.02))
    task = asyncio.create_task(webhook.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def record(number: int) -> Record:
    return Record(Kind.READY, f"{number}", "t0", Unit("m", 2))


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("shoal_webhook_events_total", {"outcome": outcome}) or 0.0


async def test_an_event_is_a_cloud_event(receiver: Receiver) -> None:
    journal = Journal(epoch=7)
    why = Record(Kind.EVICTING, "idle", "t0", Unit("m", 2), Unit("n", 1), "ab" * 16)
    journal.add(why)
    async with posting(receiver.url, journal):
        path, headers, body = await receiver.request()
    (event,) = journal.newest("")
    assert (path, headers["Content-Type"]) == ("/events", CONTENT_TYPE)
    data = body.pop("data")
    assert json_format.ParseDict(data, types_pb2.Event()) == event
    assert data["kind"] == "EVENT_KIND_EVICTING"
    assert data["forVersion"] == "models/n/versions/1"
    assert body == {
        "specversion": "1.0",
        "id": "7-1",
        "source": SOURCE,
        "type": "shoal.controller.v1.evicting",
        "subject": "models/m/versions/2",
        "time": event.time.ToJsonString(),
        "datacontenttype": "application/json",
    }


@pytest.mark.parametrize(
    ("event", "subject"),
    [
        (types_pb2.Event(server="servers/t0"), "servers/t0"),
        (types_pb2.Event(), SOURCE),
    ],
)
def test_a_subject_is_never_empty(event: types_pb2.Event, subject: str) -> None:
    assert cloud_event(event, SOURCE)["subject"] == subject


async def test_events_come_in_order_through_failures(receiver: Receiver) -> None:
    journal = Journal()
    sent = counted("sent")
    receiver.statuses = [503, 500, 204, 301, 429, 204]
    for number in range(3):
        journal.add(record(number))
    async with posting(receiver.url, journal):
        tried = [await receiver.request() for _ in range(7)]
        journal.add(record(3))
        tried.append(await receiver.request())
    assert [body["data"]["reason"] for _, _, body in tried] == list("00011123")
    assert {path for path, _, _ in tried} == {"/events"}, "a redirect is not followed"
    assert counted("sent") in (sent + 3, sent + 4), "the last may not have been answered yet"


async def test_what_the_receiver_refuses_is_dropped(receiver: Receiver) -> None:
    journal = Journal()
    refused = counted("refused")
    receiver.statuses = [400, 422]
    for number in range(3):
        journal.add(record(number))
    with capture_logs() as logs:
        async with posting(receiver.url, journal):
            assert [(await receiver.next())["data"]["reason"] for _ in range(3)] == list("012")
    assert counted("refused") == refused + 2
    assert [(log["sequence"], log["why"]) for log in logs if "refused" in log["event"]] == [
        (1, "HTTP status 400"),
        (2, "HTTP status 422"),
    ]


async def test_a_receiver_that_was_away_is_told_what_the_journal_still_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(journal_module, "LENGTH", 3)
    journal = Journal()
    lost = counted("lost")
    receiver = Receiver()
    with receiving(receiver):
        port = receiver.port
    with capture_logs() as logs:
        journal.add(record(0))
        async with posting(receiver.url, journal):
            async with asyncio.timeout(SECONDS):
                while not logs[1:]:  # noqa: ASYNC110 - a log is all that tells
                    await asyncio.sleep(0.01)
            for number in range(1, 6):
                journal.add(record(number))
            with receiving(receiver, port):
                reasons = [(await receiver.next())["data"]["reason"] for _ in range(4)]
    assert reasons == ["0", "3", "4", "5"]
    assert counted("lost") == lost + 2
    told = [log for log in logs if "webhook" in log]
    assert told[0]["event"] == "events wait for the webhook"
    assert told[0]["cause"] == "Connection refused"
    assert {"events were lost while the webhook was away", "the webhook takes events again"} < {
        log["event"] for log in told
    }


async def test_a_slow_receiver_holds_nobody_up(receiver: Receiver) -> None:
    journal = Journal()
    receiver.held.clear()
    journal.add(record(0))
    async with posting(receiver.url, journal):
        follower = journal.follow(-1)
        for number in range(1, 100):
            journal.add(record(number))
        seen = [(await anext(follower)).reason for _ in range(100)]
        assert seen[-1] == "99"
        assert receiver.requests.empty()
        receiver.held.set()
        assert (await receiver.next())["data"]["reason"] == "0"


async def test_credentials_go_into_a_header_and_into_no_log(receiver: Receiver) -> None:
    journal = Journal()
    receiver.statuses = [503, 400]
    journal.add(record(0))
    journal.add(record(1))
    url = f"http://us%40er:pa55%3Aw%2Frd@127.0.0.1:{receiver.port}/events?key={URL_SECRET}"
    with capture_logs() as logs:
        async with posting(url, journal):
            path, headers, _ = await receiver.request()
            await receiver.request()
            await receiver.request()
    assert path == f"/events?key={URL_SECRET}"
    kind, _, pair = headers["Authorization"].partition(" ")
    assert (kind, base64.b64decode(pair).decode()) == ("Basic", f"us@er:{SECRET}")
    assert headers["Host"] == f"127.0.0.1:{receiver.port}"
    told = [log for log in logs if "webhook" in log]
    assert {log["webhook"] for log in told} == {f"http://127.0.0.1:{receiver.port}"}
    assert not [log for log in told if URL_SECRET in str(log) or "pa55" in str(log)]


def test_its_url_is_kept_out_of_what_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "SHOAL_CONTROLLER_EVENTS_WEBHOOK"
    assert Settings().events_webhook is None
    monkeypatch.setenv(name, f"https://user:{URL_SECRET}@hooks.example/{URL_SECRET}")
    chosen = Settings()
    assert chosen.events_webhook is not None
    assert URL_SECRET in str(chosen.events_webhook.get_secret_value())
    assert URL_SECRET not in repr(chosen)
    for wrong in (f"ftp://user:{URL_SECRET}@hooks.example", f"hooks.example/{URL_SECRET}"):
        monkeypatch.setenv(name, wrong)
        with pytest.raises(ValidationError) as raised:
            Settings()
        assert URL_SECRET not in str(raised.value)
        assert "events_webhook" in str(raised.value)
