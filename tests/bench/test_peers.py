"""What the comparison with peers is made of; no peer is installed, and no figure asserted."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench import load
from bench.peers import asking, environments, keeper, plot, report
from bench.peers.catalog import PEERS, PROXY, SERVER, Peer
from bench.peers.launch import filled
from bench.peers.subjects import WORKLOADS
from bench.rounds import Sample, summaries

SERVERS = Path(report.__file__).with_name("servers")
PINS = Path(report.__file__).with_name("pins")
WORDS = "bin folder host http metrics port program servers triton upstream user"
PLACE = dict.fromkeys(WORDS.split(), "x")
SAID = """\
status codes: 300 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 55.84KB (57178) total, 975B (975) headers (space savings 95.99%), 38.38KB (39300) data
                     min         max
"""


def sample(variant: str, rate: float) -> Sample:
    return Sample(1, "many", variant, rate, 1e6 / rate, 3e6 / rate, None, 70.0, 5.0)


FOUND = summaries(
    [
        sample("direct", 1000),
        sample("router", 200),
        sample("lane", 800),
        sample("kserve", 300),
    ]
)


def test_h2load_says_how_much_it_received() -> None:
    assert load.answered_bytes(SAID) == 39300
    with pytest.raises(load.Failed, match="did not say"):
        load.answered_bytes("h2load: error")


def test_over_http1_as_many_are_in_flight() -> None:
    for workload in WORKLOADS:
        assert asking.spread(workload, as_json=False) == workload
        spread = asking.spread(workload, as_json=True)
        assert (spread.in_flight, spread.streams) == (workload.in_flight, 1)


def test_requests_have_the_peers_headers_and_framing() -> None:
    call = asking.call("h:1", WORKLOADS[0], ("model: a",))
    assert call.headers[-1] == "model: a"
    assert int.from_bytes(call.body[1:5], "big") == len(call.body) - 5
    call = asking.call("h:1", WORKLOADS[0], as_json=True)
    assert (call.http1, call.url) == (True, "http://h:1/predict")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_what_a_peer_is_started_with_can_be_filled_in(peer: Peer) -> None:
    assert peer.role in {PROXY, SERVER}
    for word in (*peer.command, *peer.settings.values()):
        assert "$" not in filled(word, PLACE)
    for source in peer.files.values():
        assert "$" not in filled(SERVERS.joinpath(source).read_text(), PLACE)
    assert bool(peer.packages) == environments.pins(peer).exists() != bool(peer.program)


def test_pins_are_versions_alone_and_torch_is_none_of_them() -> None:
    for path in PINS.iterdir():
        lines = path.read_text().splitlines()
        assert all(line.count("==") == 1 and " " not in line for line in lines)
        assert not any(line.lower().startswith("torch") for line in lines)


def test_the_section_has_every_peer_and_why_one_is_left_out() -> None:
    rows = [report.Row(peer, "1.0", 0.104, "") for peer in PEERS[:-1]]
    rows.append(report.Row(PEERS[-1], "", None, "pip: a | b\nc"))
    text = report.section("2026-01-01: a title", {"machine": "2 cores"}, FOUND, rows, "p.svg")
    assert text.startswith("## 2026-01-01: a title\n")
    assert "](p.svg)" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    table = lines[-len(PEERS) :]
    assert [line.split()[1] for line in table] == [peer.name for peer in PEERS]
    assert "left out: pip: a \\| b c |  |" in table[-1]
    assert "| 10% |" in table[0]


def test_the_plot_has_shoal_first_and_not_direct_triton_itself() -> None:
    shown = list(plot.shares(FOUND[::-1])["many"].items())
    assert shown == [("lane", 0.8), ("router", 0.2), ("kserve", 0.3)]
    assert {plot.kind(name) for name in ("router", "envoy", "ray")} == set(plot.COLOURS)
    assert plot.kind("lane") == plot.OWN


TREE = """\
import subprocess, sys, time
started = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); "
     "print('up', flush=True); time.sleep(300)"],
    start_new_session=True, stdout=subprocess.PIPE,
)
started.stdout.readline()
print(started.pid, flush=True)
if sys.argv[1] == "stay":
    time.sleep(300)
"""


@pytest.mark.parametrize(("words", "told"), [("stay", True), ("leave", False)])
def test_a_keeper_leaves_nothing_behind(words: str, told: bool) -> None:
    command = [sys.executable, keeper.__file__, str(os.getpid()), sys.executable, "-c", TREE, words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as kept:
        assert kept.stdout
        started = int(kept.stdout.readline())
        with contextlib.suppress(psutil.NoSuchProcess):
            deaf = psutil.Process(started)
        if told:
            kept.send_signal(signal.SIGTERM)
        kept.wait(30)
    assert not psutil.pid_exists(started) or deaf.status() == psutil.STATUS_ZOMBIE
