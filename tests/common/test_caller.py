"""Who calls: by address, by the headers of trusted proxies, and by a service's own edge."""

import socket
from collections.abc import Iterator

import grpc
import psutil
import pytest

from services.common.caller import ADMIN, LOCAL, USER, Caller, CallerPolicy
from services.common.errors import AdminRequired
from services.common.rpc import Context, current_caller
from shoal.registry.v1 import registry_service_pb2 as pb
from tests.support.registry import refusal
from tests.support.rpc import ADMINISTRATIVE, Scripted, serving

ALICE = (
    ("x-shoal-subject", "alice"),
    ("x-shoal-tenant", "acme"),
    ("x-shoal-roles", "user, admin"),
)
STRANGER = "ipv4:203.0.113.9:4711"


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:4711", "127.0.0.1"),
        ("ipv6:[::1]:4711", "::1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:4711", "10.1.2.3"),
        ("ipv6:[fe80::1%25eth0]:4711", "fe80::1"),
    ],
)
def test_the_address_in_a_peer(peer: str, address: str) -> None:
    assert CallerPolicy([address]).caller(peer, ALICE).subject == "alice"


@pytest.mark.parametrize("peer", ["", "ipv4:", "ipv4:127.0.0.1.x:1", "dns:localhost:1"])
def test_a_peer_without_an_address(peer: str) -> None:
    caller = CallerPolicy(["0.0.0.0/0", "::/0"]).caller(peer, ALICE)
    assert caller.subject == f"anonymous at {peer}"


@pytest.mark.parametrize(
    "peer",
    [
        "ipv4:127.0.0.1:4711",
        "ipv4:127.1.2.3:4711",
        "ipv6:%5B::1%5D:4711",
        "ipv6:[::1]:4711",
        "ipv6:%5B::ffff:127.0.0.1%5D:4711",
        "unix:",
        "unix:/run/shoal.sock",
    ],
)
@pytest.mark.parametrize("metadata", [(), ALICE])
def test_this_host_is_local_whatever_it_says(
    peer: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    assert CallerPolicy().caller(peer, metadata) == LOCAL
    assert LOCAL.roles == {ADMIN, USER}


@pytest.mark.parametrize(
    "peer",
    [
        STRANGER,
        "ipv4:128.0.0.1:1",
        "ipv4:0.0.0.0:1",
        "ipv6:[fd00::2]:1",
        "ipv6:[::ffff:203.0.113.9]:1",
        "ipv4:127.0.0.1.example.org:1",
        "unknown:127.0.0.1:1",
        "",
    ],
)
@pytest.mark.parametrize("metadata", [(), ALICE])
def test_a_stranger_is_anonymous_whatever_it_says(
    peer: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    caller = CallerPolicy(["10.0.0.0/8"]).caller(peer, metadata)
    assert caller == Caller(f"anonymous at {peer}", "default", frozenset({USER}))


# --- trusted proxies ------------------------------------------------------------------------------

PROXIES = ["10.0.0.0/8", "192.0.2.7", "fd00::/64"]


@pytest.mark.parametrize(
    "peer",
    ["ipv4:10.1.2.3:1", "ipv4:192.0.2.7:1", "ipv6:[fd00::9]:1", "ipv6:[::ffff:10.0.0.1]:1"],
)
def test_a_trusted_proxy_says_who_calls(peer: str) -> None:
    caller = CallerPolicy(PROXIES).caller(peer, ALICE)
    assert caller == Caller("alice", "acme", frozenset({ADMIN, USER}))


@pytest.mark.parametrize("peer", ["ipv4:192.0.2.8:1", "ipv4:11.0.0.1:1", "ipv6:[fd00:0:0:1::9]:1"])
def test_a_neighbour_of_a_proxy_is_a_stranger(peer: str) -> None:
    assert CallerPolicy(PROXIES).caller(peer, ALICE).subject == f"anonymous at {peer}"


def test_a_subject_alone_may_infer() -> None:
    caller = CallerPolicy(PROXIES).caller("ipv4:10.1.2.3:1", (("x-shoal-subject", "bob"),))
    assert caller == Caller("bob", "default", frozenset({USER}))


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("x-shoal-roles", "admin"),),
        (("x-shoal-subject", ""), ("x-shoal-roles", "admin")),
        (("x-shoal-subject", b"alice"), ("x-shoal-roles", "admin")),
    ],
)
def test_a_proxy_that_names_nobody_brings_an_anonymous_caller(
    metadata: tuple[tuple[str, str | bytes], ...],
) -> None:
    caller = CallerPolicy(PROXIES).caller("ipv4:10.1.2.3:1", metadata)
    assert caller.roles == {USER}
    assert caller.subject == "anonymous behind ipv4:10.1.2.3:1"


def test_behind_a_proxy_on_this_host_nobody_is_local() -> None:
    policy = CallerPolicy(["127.0.0.1"])
    assert policy.caller("ipv4:127.0.0.1:1", ()).roles == {USER}
    assert policy.caller("ipv4:127.0.0.1:1", ALICE).subject == "alice"
    assert policy.caller("ipv6:[::1]:1", ()) == LOCAL, "another address is no proxy"


@pytest.mark.parametrize("proxy", ["proxy.example.org", "10.0.0.1/8", "10.0.0.0/40"])
def test_a_proxy_that_is_no_network_is_refused_at_once(proxy: str) -> None:
    with pytest.raises(ValueError, match=proxy.partition("/")[0]):
        CallerPolicy([proxy])


def test_administration_takes_the_role() -> None:
    LOCAL.require_admin("/m")
    with pytest.raises(AdminRequired) as caught:
        Caller("bob", "default", frozenset({USER})).require_admin("/shoal.x.v1.X/Y")
    assert caught.value.metadata == {"method": "/shoal.x.v1.X/Y", "subject": "bob"}


# --- at a service's edge --------------------------------------------------------------------------


def outer_addresses() -> Iterator[str]:
    """This machine's own addresses that others could call."""
    for found in psutil.net_if_addrs().values():
        for one in found:
            loopback_or_local = one.address.startswith(("127.", "169.254.", "fe80:")) or (
                one.address == "::1"
            )
            if one.family == socket.AF_INET and not loopback_or_local:
                yield one.address
            elif one.family == socket.AF_INET6 and not loopback_or_local:
                yield f"[{one.address}]"


OUTER = sorted(outer_addresses())


@pytest.fixture(params=OUTER or [""])
def outside(request: pytest.FixtureRequest) -> str:
    """As if from another machine: the connection comes from an address that is not loopback."""
    if not request.param:
        pytest.skip("this machine has no address but loopback")
    return str(request.param)


class Remembering(Scripted):
    """Whom the last open call came from."""

    caller: Caller | None = None

    async def GetModel(self, request: object, context: Context) -> pb.GetModelResponse:
        self.caller = current_caller.get()
        return pb.GetModelResponse()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # also the families of each other
async def test_beyond_loopback_strangers_may_not_administrate(outside: str, host: str) -> None:
    servicer = Remembering()
    async with serving(servicer, host=host) as running, running.stub(outside) as stub:
        refused = await refusal(stub.DeleteModel(pb.DeleteModelRequest()))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "ADMIN_REQUIRED",
        )
        assert refused.metadata["method"] == ADMINISTRATIVE
        assert refused.metadata["subject"].startswith("anonymous at ipv")
        assert "call from the service's own host" in refused.message
        await refusal(stub.DeleteModel(pb.DeleteModelRequest(), metadata=ALICE))

        await stub.GetModel(pb.GetModelRequest(), metadata=ALICE)
        assert servicer.caller is not None
        assert servicer.caller.roles == {USER}
        assert outside.strip("[]") in servicer.caller.subject.replace("%5B", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_beyond_loopback_this_host_may(host: str) -> None:
    servicer = Remembering()
    async with serving(servicer, host="0.0.0.0") as running, running.stub(host) as stub:
        await stub.DeleteModel(pb.DeleteModelRequest())
        await stub.GetModel(pb.GetModelRequest())
    assert servicer.caller == LOCAL


async def test_a_proxy_on_this_host_passes_on_who_calls() -> None:
    servicer, policy = Remembering(), CallerPolicy(["127.0.0.1"])
    async with serving(servicer, policy) as running, running.stub() as stub:
        await stub.DeleteModel(pb.DeleteModelRequest(), metadata=ALICE)
        await stub.GetModel(pb.GetModelRequest(), metadata=ALICE)
        assert servicer.caller == Caller("alice", "acme", frozenset({ADMIN, USER}))
        refused = await refusal(stub.DeleteModel(pb.DeleteModelRequest()))
        assert refused.metadata["subject"].startswith("anonymous behind ipv4:127.0.0.1")
        bob = (("x-shoal-subject", "bob"),)
        refused = await refusal(stub.DeleteModel(pb.DeleteModelRequest(), metadata=bob))
        assert refused.metadata["subject"] == "bob"
