"""A backend service that calls models while it answers its own callers.

    make up                                              # in another terminal
    .venv/bin/python examples/backend_service.py
    curl 'localhost:8080/words?text=few+shoals'          # in a third one
    {"words":2,"longest":"shoals"}

It shows what a service in front of Shoal should do: keep one client for its lifetime, give every
call a deadline, hand errors on with their meaning, and continue the caller's trace.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from shoal.client import AsyncClient, CallFailed, DeadlineExceeded, connect_async

DEADLINE = 10.0  # seconds that our own callers wait
TRACE_HEADERS = (
    "traceparent",
    "tracestate",
)  # with OpenTelemetry in the program, this is automatic


async def words(request: Request) -> JSONResponse:
    """Answer `?text=…` with the number of its words and the longest of them."""
    shoal: AsyncClient = request.app.state.shoal
    text = request.query_params.get("text", "")
    headers = {name: request.headers[name] for name in TRACE_HEADERS if name in request.headers}
    try:
        found = await shoal.infer("text_stats", {"TEXT": [text]}, headers=headers, timeout=DEADLINE)
    except DeadlineExceeded:
        return JSONResponse({"error": "the model did not answer in time"}, 504)
    except CallFailed as error:
        # A time to come back is worth handing on; everything else is this service's own failure.
        retry = {} if error.retry_after is None else {"Retry-After": f"{error.retry_after:.0f}"}
        return JSONResponse({"error": error.message}, 503 if retry else 502, headers=retry)
    longest = found["LONGEST_WORD"][0].decode()
    return JSONResponse({"words": int(found["COUNTS"][0, 1]), "longest": longest})


def service(router: str) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with connect_async(router=router) as app.state.shoal:
            yield

    return Starlette(routes=[Route("/words", words)], lifespan=lifespan)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A backend service that calls models.")
    parser.add_argument("--router", default="localhost:8001", metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    uvicorn.run(service(arguments.router), port=arguments.port, log_level="warning")
