"""The Router's HTTP port: health as Triton spells it, and metrics."""

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.router.placement_watch import PlacementWatch


def app(watch: PlacementWatch) -> Starlette:
    """`/v2/health/live`, `/v2/health/ready`: 200, or 503 while there is no placement table."""

    async def live(request: Request) -> Response:
        return Response(status_code=200)

    async def ready(request: Request) -> Response:
        return Response(status_code=200 if watch.synchronized.is_set() else 503)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/metrics", metrics),
        ]
    )
