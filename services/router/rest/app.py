"""The Router's HTTP port as an ASGI application."""

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from services.router.rest.endpoint import Endpoint
from services.router.rest.reply import error_reply
from services.router.rest.service import Service
from services.router.rest.table import ROUTES


def app(service: Service) -> ASGIApp:
    """Return the application."""
    router = Router(
        [Route(path, Endpoint(path, route, service)) for route in ROUTES for path in route.paths],
        redirect_slashes=False,
        default=_not_found,
    )

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        """Route by the path as it was sent: a slash that is escaped separates no segments, for us
        as for a proxy that forbids some paths."""
        path = scope["raw_path"].decode("ascii")
        await router({**scope, "path": path}, receive, send)

    if not service.browsers.origins:
        return routed
    return CORSMiddleware(
        routed,
        sorted(service.browsers.origins),
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("*",),
        allow_private_network=True,
    )


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await error_reply(404, "Not Found").send(send)
