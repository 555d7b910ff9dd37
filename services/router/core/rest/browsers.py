"""Which requests of web pages are refused.

Any page that developers open can send requests to their own machine. A Router that trusts callers
on loopback for their address alone therefore asks two more things of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.router.core.errors import ForeignPage, UnknownHost

ANY: Final = "*"

_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_ADDRESS: Final = re.compile(r"[\d.]+|[\da-f.]*:[\da-f:.]*")  # no top-level domain is a number
_LOOPBACK: Final = re.compile(r"127\.[\d.]+|::1|(.+\.)?localhost")
_SHOWN: Final = 64  # characters of a header in an error


@dataclass(frozen=True, slots=True)
class BrowserPolicy:
    """Which pages may send requests, and under which names this machine is reached."""

    #: Origins of other sites whose pages may send requests; ANY allows all.
    origins: frozenset[str] = frozenset()
    #: Names of this machine in lower case, beside `localhost`, addresses and names without a dot.
    hosts: frozenset[str] = frozenset()

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise UnknownHost or ForeignPage for a request that a page of another site caused.

        The name in `Host` is checked because a page can point its own name to this machine: it
        would then count as a page of this server. Names of addresses and names without a dot cannot
        be had by strangers."""
        host = _text(headers, b"host")
        if host and not self._is_own(_without_port(host)):
            raise UnknownHost(host=host[:_SHOWN])
        if method in _SAFE:
            return
        origin = _text(headers, b"origin")
        cross = headers.get(b"sec-fetch-site") == b"cross-site"
        if self._is_foreign(origin, host) if origin else cross:
            raise ForeignPage(origin=origin[:_SHOWN] or "another site")

    def _is_own(self, name: str) -> bool:
        own = "." not in name or _ADDRESS.fullmatch(name) or _LOOPBACK.fullmatch(name)
        return bool(own) or name in self.hosts

    def _is_foreign(self, origin: str, host: str) -> bool:
        if origin in self.origins or ANY in self.origins:
            return False
        name = _without_port(origin.partition("://")[2])
        own = name == _without_port(host) or _LOOPBACK.fullmatch(name) or name in self.hosts
        return not (name and own)


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1").strip()


def _without_port(host: str) -> str:
    """Return the name or address in a Host header, in lower case and without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()
