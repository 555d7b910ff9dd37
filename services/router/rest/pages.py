"""The routes that describe the port: metrics, OpenAPI, and a page for people."""

from prometheus_client import CONTENT_TYPE_LATEST

from services.router.rest.incoming import HttpRequest
from services.router.rest.reply import JSON, HttpReply, json_reply
from services.router.rest.service import Service

HTML = (b"content-type", b"text/html; charset=utf-8")


async def root(incoming: HttpRequest, service: Service) -> HttpReply:
    return json_reply({"status": "alive", "docs": "/docs"})


async def metrics(incoming: HttpRequest, service: Service) -> HttpReply:
    kind = (b"content-type", CONTENT_TYPE_LATEST.encode())
    return HttpReply(200, await service.metrics(), (kind,))


async def openapi(incoming: HttpRequest, service: Service) -> HttpReply:
    return HttpReply(200, service.pages.openapi, (JSON,))


async def docs(incoming: HttpRequest, service: Service) -> HttpReply:
    return HttpReply(200, service.pages.docs, (HTML,))
