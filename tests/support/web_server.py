"""An HTTPS server for tests: real TLS, and files that a test names."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import trustme
from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def https_server(folder: Path, routes: Mapping[str, Answer]) -> AsyncIterator[int]:
    """Serve routes, and give the port. `folder / "ca.pem"` is the authority of its certificate."""
    app = web.Application()
    for path, answer in routes.items():
        app.router.add_get(path, answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls(folder))
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def tls(folder: Path) -> ssl.SSLContext:
    """Return a certificate for this host, of the authority in `folder / "ca.pem"`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context
