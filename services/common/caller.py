"""Who calls: the one place that decides it.

There are no credentials. A caller on loopback is trusted with every role, identity headers are
believed only from proxies that the settings name, and everybody else is anonymous. A service that
is bound beyond loopback refuses administrative calls from anonymous callers.
"""

import enum
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from services.common.errors import AdminRequired

ADMIN: Final = "admin"
USER: Final = "user"

SUBJECT_HEADER: Final = "x-shoal-subject"
TENANT_HEADER: Final = "x-shoal-tenant"
ROLES_HEADER: Final = "x-shoal-roles"
#: The caller's `host:port`, as the proxy of the lane sees it.
PEER_HEADER: Final = "x-shoal-peer"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call.

    `roles` are among `ADMIN` (may change what exists and where it lives) and `USER` (may infer).
    """

    subject: str
    tenant: str
    roles: frozenset[str]

    def require_admin(self, method: str) -> None:
        """Raises AdminRequired unless the caller has the role ADMIN."""
        if ADMIN not in self.roles:
            raise AdminRequired(method=method, subject=self.subject)


LOCAL: Final = Caller("local", "default", frozenset({ADMIN, USER}))


class CallerPolicy:
    """Turns a gRPC peer and its metadata into a Caller.

    `trusted_proxies` are addresses or networks (`10.1.2.3`, `10.0.0.0/8`) whose identity headers
    are believed. A trusted proxy that sends no subject is an anonymous caller, even on loopback:
    otherwise everybody behind it would be `local`. `behind_lane` says that callers come by way of
    the lane's proxy on loopback, which tells where each is.
    """

    def __init__(self, trusted_proxies: Iterable[str] = (), *, behind_lane: bool = False) -> None:
        self._behind_lane = behind_lane
        self._proxies = tuple(ipaddress.ip_network(proxy) for proxy in trusted_proxies)
        # By host alone, because the port differs for each connection.
        self._by_host = lru_cache(maxsize=4096)(self._standing)

    def caller(self, peer: str, metadata: Sequence[tuple[str, str | bytes]]) -> Caller:
        """Return the caller. gRPC spells `peer` `ipv4:127.0.0.1:4711`, `ipv6:%5B::1%5D:4711` …"""
        peer = self.peer(peer, metadata)
        standing = self._by_host(peer.rpartition(":")[0])  # kind and host, without the port
        if standing is _Standing.LOCAL:
            return LOCAL
        if standing is _Standing.PROXY:
            return _from_headers(peer, metadata)
        return Caller(f"anonymous at {peer}", "default", frozenset({USER}))

    def peer(self, peer: str, metadata: Sequence[tuple[str, str | bytes]]) -> str:
        """Return where a call comes from, in gRPC's notation: `peer`, or who is in front of the
        lane's proxy."""
        if not self._behind_lane or not _is_loopback(_address(peer.rpartition(":")[0])):
            return peer
        for key, value in metadata:
            if key == PEER_HEADER and isinstance(value, str):
                host, _, port = value.rpartition(":")
                if host.startswith("["):
                    return f"ipv6:%5B{host[1:-1]}%5D:{port}"
                return f"ipv4:{value}"
        return peer

    def _standing(self, host: str) -> "_Standing":
        address = _address(host)
        if address is not None and any(address in network for network in self._proxies):
            return _Standing.PROXY
        unix = host.partition(":")[0] == "unix"
        if unix or _is_loopback(address):
            return _Standing.LOCAL
        return _Standing.STRANGER


class _Standing(enum.Enum):
    LOCAL = enum.auto()
    PROXY = enum.auto()
    STRANGER = enum.auto()


def _address(host: str) -> Address | None:
    kind, _, name = unquote(host).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    try:
        address = ipaddress.ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _is_loopback(address: Address | None) -> bool:
    return address is not None and address.is_loopback


def _from_headers(peer: str, metadata: Sequence[tuple[str, str | bytes]]) -> Caller:
    headers = {key: value for key, value in metadata if isinstance(value, str)}
    subject = headers.get(SUBJECT_HEADER)
    if not subject:
        return Caller(f"anonymous behind {peer}", "default", frozenset({USER}))
    roles = frozenset(headers.get(ROLES_HEADER, USER).replace(" ", "").split(","))
    return Caller(subject, headers.get(TENANT_HEADER, "default"), roles)
