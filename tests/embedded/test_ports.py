"""Ports are taken exclusively, and a refusal says who has one and what changes it."""

import contextlib
import os
import socket
import subprocess
import sys

import grpc
import pytest

from services.embedded.errors import PortTaken
from services.embedded.ports import LOOPBACK, Claims, pick


def test_a_taken_port_names_its_owner_and_the_way_out() -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            Claims().take(port, "router_grpc_port")
    told = str(caught.value)
    assert told.startswith(f"{LOOPBACK}:{port} is taken by process {os.getpid()} (")
    assert "another port with --router-grpc-port or SHOAL_ROUTER_GRPC_PORT; 0 picks a free" in told


async def test_a_grpc_server_that_shares_its_port_is_noticed() -> None:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 1),))
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    try:
        with pytest.raises(PortTaken):
            Claims().take(port, "registry_port")
    finally:
        await server.stop(0)


def test_connections_of_an_earlier_server_do_not_count() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection((LOOPBACK, port))
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first keeps TIME_WAIT
        client.close()
    claims = Claims()
    assert claims.take(port, "registry_port") == port
    claims.close()


def test_picked_ports_are_never_the_same_nor_in_use() -> None:
    mine, others = Claims(), Claims()
    picked = [claims.take(0) for claims in (mine, others) for _ in range(40)]
    assert len(set(picked)) == 80
    mine.close()
    others.close()


def test_a_port_for_two_parts_is_refused_by_the_name_of_the_second() -> None:
    claims = Claims()
    port = claims.take(0)
    with pytest.raises(PortTaken, match=r"--controller-port: \d+ is already given to another part"):
        claims.take(port, "controller_port")
    claims.close()


def test_a_released_port_can_be_listened_on() -> None:
    claims = Claims()
    port = claims.take(0)
    claims.close()
    with socket.create_server((LOOPBACK, port)):
        pass


def test_what_a_process_picked_no_other_takes_though_nobody_listens() -> None:
    (port,) = pick(1)
    taking = f"from services.embedded.ports import Claims; Claims().take({port}, 'registry_port')"
    other = subprocess.run(
        [sys.executable, "-c", taking], capture_output=True, text=True, check=False
    )
    assert f"{LOOPBACK}:{port} is taken by another program" in other.stderr
    with socket.create_server((LOOPBACK, port)):
        pass


def test_a_port_is_anybodys_again_when_its_process_has_ended() -> None:
    picking = "from services.embedded.ports import pick; print(pick(1)[0])"
    picked = subprocess.run(
        [sys.executable, "-c", picking], capture_output=True, text=True, check=True
    )
    with contextlib.closing(Claims()) as claims:
        claims.take(int(picked.stdout), "registry_port")
