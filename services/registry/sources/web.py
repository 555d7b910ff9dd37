"""GET over HTTPS, as far as it is safe: every address is looked at before it is connected to.

A redirect leads wherever its server wants, and a host name to whatever address its owner says. So
the Registry connects to no private or loopback address, unless the operator has allowed that host
or network.
"""

import asyncio
import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from services.common.errors import ShoalError
from services.registry.core.errors import (
    ExtraMissing,
    SourceChanged,
    SourceDenied,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
)
from services.registry.core.source import Source
from services.registry.sources.origin import Listing, RemoteFile
from services.registry.sources.settings import OriginSettings
from services.registry.sources.streams import CHUNK

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession
    from yarl import URL

_MAX_REDIRECTS: Final = 10
_REDIRECTS: Final = (301, 302, 303, 307, 308)
# IPv4 addresses in IPv6 ones, as a NAT64 translates them.
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Web:
    """Makes GET requests for sources of one scheme."""

    def __init__(self, scheme: str, settings: OriginSettings) -> None:
        try:
            import aiohttp  # noqa: F401
        except ImportError:
            raise ExtraMissing(scheme=scheme, extra=scheme) from None
        self._settings = settings
        self._networks = [ipaddress.ip_network(one) for one in settings.private_hosts if "/" in one]
        self._tls: ssl.SSLContext | None = None

    def url(self, authority: str, path: str) -> "URL":
        """Return the URL of a path, quoted as it stands, on a host and port."""
        from yarl import URL

        scheme = "http" if authority in self._settings.plain_hosts else "https"
        return URL(f"{scheme}://{authority}/{path}", encoded=True)

    @asynccontextmanager
    async def get(
        self,
        url: "URL",
        source: Source,
        headers: Mapping[str, str] | None = None,
        expected: Collection[int] = (200, 206),
    ) -> AsyncIterator["ClientResponse"]:
        """Make a request, and give the reply with one of the expected statuses before its body.

        An Authorization header goes to the host of the URL alone, not to where that redirects.

        Raises SourceNotFound, SourceDenied, SourceForbidden, SourceChanged and SourceUnavailable.
        """
        if self._tls is None:  # aiohttp's own has the authorities of the moment of its import
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        wanted = {"Accept-Encoding": "identity", **(headers or {})}
        for _ in range(_MAX_REDIRECTS + 1):
            async with AsyncExitStack() as stack:
                refused: list[Address] = []
                session = await stack.enter_async_context(self._session(url, source, refused))
                sent = {**self._token(url), **wanted}
                try:
                    reply = await stack.enter_async_context(
                        session.get(
                            url,
                            headers=sent,
                            allow_redirects=False,
                            proxy=self._proxy(url, source),
                        )
                    )
                except Exception as error:
                    raise _failed(error, source, url, refused) from None
                stack.callback(_cut, reply)
                target = reply.headers.get("Location")
                if reply.status not in _REDIRECTS or target is None:
                    if reply.status not in expected:
                        raise _unexpected(reply.status, source)
                    yield reply
                    return
            elsewhere = self.followed(url, target, source)
            if elsewhere.origin() != url.origin():
                wanted.pop("Authorization", None)
            url = elsewhere
        raise SourceUnavailable(
            source=source, problem=f"it redirects more than {_MAX_REDIRECTS} times"
        )

    async def body(
        self, reply: "ClientResponse", listing: Listing, file: RemoteFile, start: int
    ) -> AsyncGenerator[bytes, None]:
        """Yield the body of a reply to a request for the bytes from `start` on.

        A server that knows no ranges sends all: what comes before `start` is left out.
        """
        skip = start
        if reply.status == 206:
            said = reply.headers.get("Content-Range", "")
            if not said.startswith(f"bytes {start}-"):
                raise SourceUnavailable(
                    source=listing.source, problem="it sends another range than asked for"
                )
            skip = 0
        try:
            async for chunk in reply.content.iter_chunked(CHUNK):
                if skip < len(chunk):
                    yield chunk[skip:] if skip else chunk
                skip = max(0, skip - len(chunk))
        except Exception as error:
            raise _failed(error, listing.source, reply.url, []) from None

    def _session(self, url: "URL", source: Source, refused: list[Address]) -> "ClientSession":
        """Return a session that connects to no private address unless it is allowed."""
        import aiohttp

        proxied = self._proxy(url, source) is not None

        def connect(address: Any) -> socket.socket:
            family, kind, protocol, _, where = address
            target = ipaddress.ip_address(where[0].partition("%")[0])
            if not proxied and not self._is_allowed(url, target):
                refused.append(target)
                raise PermissionError
            return socket.socket(family, kind, protocol)

        timeout = aiohttp.ClientTimeout(
            total=None,
            connect=self._settings.connect_timeout,
            sock_connect=self._settings.connect_timeout,
            sock_read=self._settings.idle_timeout,
        )
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                socket_factory=connect, force_close=True, ssl=self._tls or True
            ),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _is_allowed(self, url: "URL", address: Address) -> bool:
        """Return whether a URL may lead to an address."""
        named = {_authority(url), url.host} & {*self._settings.private_hosts}
        return (
            bool(named)
            or any(address in network for network in self._networks)
            or is_public(address)
        )

    def _proxy(self, url: "URL", source: Source) -> str | None:
        """Return the proxy that the environment names for a URL.

        A proxy looks names up itself, so that only addresses can be checked here. Raises
        SourceForbidden.
        """
        proxy = urllib.request.getproxies().get(url.scheme)
        if proxy is None or urllib.request.proxy_bypass(url.host or ""):
            return None
        try:
            address = ipaddress.ip_address(url.host or "")
        except ValueError:
            return proxy
        if not self._is_allowed(url, address):
            raise _private(source, url, address)
        return proxy

    def _token(self, url: "URL") -> dict[str, str]:
        token = self._settings.tokens.get(_authority(url))
        return {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}

    def followed(self, url: "URL", target: str, source: Source) -> "URL":
        """Return where a server leads to from a URL. Raises SourceForbidden unless it is HTTPS."""
        from yarl import URL

        try:
            elsewhere = url.join(URL(target, encoded=True)).with_user(None).with_fragment(None)
            authority = _authority(elsewhere)
        except ValueError:
            raise SourceUnavailable(
                source=source, problem="it leads to what is no address"
            ) from None
        if elsewhere.scheme != "https" and not (
            elsewhere.scheme == "http" and authority in self._settings.plain_hosts
        ):
            raise SourceForbidden(
                source=source,
                problem=f"it leads to {elsewhere.scheme}://{authority}, which is not HTTPS",
            )
        return elsewhere


def is_public(address: Address) -> bool:
    """Return whether an address, or the IPv4 address inside it, is one of the public Internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def _authority(url: "URL") -> str:
    """Return host and port as settings and locators write them."""
    host = f"[{url.host}]" if ":" in (url.host or "") else url.host
    return f"{host}" if url.is_default_port() else f"{host}:{url.port}"


def _cut(reply: "ClientResponse") -> None:
    """Close a connection at once. TLS would first read what its server still sends."""
    connection = reply.connection  # None once the body has been read
    if connection is not None and connection.transport is not None:
        connection.transport.abort()


def _unexpected(status: int, source: Source) -> ShoalError:
    match status:
        case 404 | 410:
            return SourceNotFound(source=source, problem="its server does not have it")
        case 401 | 403:
            return SourceDenied(source=source, problem=f"its server answers {status}")
        case 412 | 416:
            return SourceChanged(source=source, problem="the file was written since")
    return SourceUnavailable(source=source, problem=f"its server answers {status}")


def _private(source: Source, url: "URL", address: Address) -> SourceForbidden:
    return SourceForbidden(
        source=source,
        problem=f"{_authority(url)} leads to {address}, which is private. Name it in the setting "
        "origins.private_hosts if the Registry may fetch from there",
    )


def _failed(
    error: Exception, source: Source, url: "URL", refused: list[Address]
) -> ShoalError | Exception:
    """Return an error of ours. The texts of aiohttp may hold signed URLs: they stay here."""
    import aiohttp

    if isinstance(error, ShoalError):
        return error
    if refused:
        return _private(source, url, refused[0])
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            problem = "its certificate is not trusted (SSL_CERT_FILE names other authorities)"
        case aiohttp.ClientConnectorDNSError():
            problem = f"there is no host {url.host}"
        case TimeoutError():
            problem = f"{_authority(url)} does not answer in time"
        case aiohttp.ClientConnectorError():
            problem = f"{_authority(url)} accepts no connection"
        case aiohttp.ClientError() | OSError():
            problem = f"{_authority(url)} broke off"
        case _:
            return error
    return SourceUnavailable(source=source, problem=problem)
