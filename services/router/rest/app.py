"""The Router's HTTP port as an ASGI application."""

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from services.router.rest.endpoint import Endpoint
from services.router.rest.reply import error_reply
from services.router.rest.service import Service
from services.router.rest.table import ROUTES


def app(service: Service) -> ASGIApp:
    """Return the application."""
    return Router(
        [Route(path, Endpoint(path, route, service)) for route in ROUTES for path in route.paths],
        redirect_slashes=False,
        default=_not_found,
    )


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await error_reply(404, "Not Found").send(send)
