"""Events for other systems: each is posted to a URL, in order, as a CloudEvent.

They follow CloudEvents 1.0 (https://github.com/cloudevents/spec) in the structured mode of its HTTP
binding; `data` is the event in protobuf's JSON. The journal is the queue: while the receiver is
away, events wait there, and those that the journal drops meanwhile are lost and counted. An event
may come twice, but never out of order; (`source`, `id`) names it for good.
"""

import asyncio
import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final

import structlog
from google.protobuf import json_format
from prometheus_client import Counter

from services.controller.telemetry.journal import Journal
from shoal.controller.v1 import types_pb2

CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
POST_SECONDS: Final = 5.0  # for each step of one request, which may delay the process's end
RETRY_SECONDS: Final = (0.5, 30.0)  # at first, and at most

# Statuses that are about the event itself, so that sending it again is of no use.
REFUSALS: Final = frozenset({400, 413, 415, 422})

EVENTS: Final = Counter(
    "shoal_webhook_events",
    "Events for the webhook, by outcome: sent, refused by the receiver, lost while it was away.",
    ["outcome"],
)
FAILURES: Final = Counter("shoal_webhook_failures", "Posts that failed and are tried again.")

_log = structlog.get_logger(__name__)


class Webhook:
    """The sender that posts events to one receiver.

    `url`: the receiver's. A user and password in it go into a header, and nothing of it but scheme,
    host and port is ever logged. `source`: a URI reference that no other fleet uses. `retry`:
    seconds between two tries, at first and at most.
    """

    def __init__(
        self,
        url: str,
        journal: Journal,
        source: str,
        *,
        retry: tuple[float, float] = RETRY_SECONDS,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self._url = parts._replace(netloc=host, fragment="").geturl()
        self._headers = {"Content-Type": CONTENT_TYPE, "User-Agent": "shoal"}
        if parts.username is not None:
            words = (parts.username, parts.password or "")
            pair = ":".join(map(urllib.parse.unquote, words)).encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        self._log = _log.bind(webhook=f"{parts.scheme}://{host}")
        self._journal = journal
        self._source = source
        self._retry = retry
        self._opener = urllib.request.build_opener(_NoRedirect)
        for outcome in ("sent", "refused", "lost"):
            EVENTS.labels(outcome)

    async def run(self) -> None:
        """Post every event from the journal's first on, for ever."""
        last = 0
        async for event in self._journal.follow(-1):
            lost, last = event.sequence - last - 1, event.sequence
            if lost:
                EVENTS.labels("lost").inc(lost)
                self._log.warning("events were lost while the webhook was away", count=lost)
            await self._deliver(event)

    async def _deliver(self, event: types_pb2.Event) -> None:
        body = json.dumps(cloud_event(event, self._source)).encode()
        wait, most = self._retry
        tries = 0
        while (problem := await asyncio.to_thread(self._post, body)) is not None:
            if isinstance(problem, urllib.error.HTTPError) and problem.code in REFUSALS:
                EVENTS.labels("refused").inc()
                self._log.warning(
                    "the webhook refused an event", sequence=event.sequence, why=_cause(problem)
                )
                return
            FAILURES.inc()
            if not tries:
                self._log.warning("events wait for the webhook", cause=_cause(problem))
            tries += 1
            await asyncio.sleep(wait)
            wait = min(2 * wait, most)
        EVENTS.labels("sent").inc()
        if tries:
            self._log.info("the webhook takes events again", tries=tries)

    def _post(self, body: bytes) -> Exception | None:
        """Post once; return what went wrong, None where the event was taken. Blocks."""
        # The settings let only http and https through.
        request = urllib.request.Request(  # noqa: S310
            self._url, body, self._headers, method="POST"
        )
        try:
            with self._opener.open(request, timeout=POST_SECONDS):
                return None
        except urllib.error.HTTPError as error:
            error.close()
            return error
        except (OSError, http.client.HTTPException, ValueError) as error:
            return error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are not followed: the POST would become a GET without the event."""

    def redirect_request(self, *about: Any, **more: Any) -> None:
        return None


def cloud_event(event: types_pb2.Event, source: str) -> dict[str, Any]:
    """Return the event in CloudEvents' JSON format."""
    kind = types_pb2.EventKind.Name(event.kind).removeprefix("EVENT_KIND_").lower()
    return {
        "specversion": "1.0",
        "id": f"{event.epoch}-{event.sequence}",
        "source": source,
        "type": f"shoal.controller.v1.{kind}",
        "subject": event.version or event.server or source,
        "time": event.time.ToJsonString(),
        "datacontenttype": "application/json",
        "data": json_format.MessageToDict(event),
    }


def _cause(problem: Exception) -> str:
    """Return what went wrong, in words that hold nothing of the URL."""
    if isinstance(problem, urllib.error.HTTPError):
        return f"HTTP status {problem.code}"
    reason = getattr(problem, "reason", problem)
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return type(reason).__name__
