"""All that is measured, running side by side, each found to give the right answers."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import grpc

from bench import subjects, workloads
from bench.cpu import Clock
from bench.load import Call
from bench.peers import environments
from bench.peers.asking import Wrong, answer_size, call
from bench.peers.catalog import Peer
from bench.peers.environments import Unavailable
from bench.peers.launch import Launcher, Running, launcher
from bench.workloads import MODEL, Workload

WORKLOADS: Final = tuple(
    one for one in workloads.WORKLOADS if one.name in ("alone", "many", "large")
)
_START_WITHIN: Final = 90.0  # seconds
_POLL: Final = 0.2

Tell = Callable[[str], None]


class Subject(NamedTuple):
    """`calls`, `sizes`: by workload; what is sent, and the bytes of a right answer's body.
    `clock`: of all processes of the proxy or the model server; None for direct Triton."""

    name: str
    peer: Peer | None
    calls: Mapping[str, Call]
    sizes: Mapping[str, int]
    clock: Callable[[], Clock] | None


class Measured(NamedTuple):
    """`left_out`: why, by the peer's name; grows when one fails on the way."""

    subjects: list[Subject]
    triton: Clock
    triton_version: str
    left_out: dict[str, str]


@contextlib.contextmanager
def running(peers: Sequence[Peer], tell: Tell) -> Iterator[Measured]:
    """Installs what is missing, and starts all. A peer that fails is left out; raises load.Failed
    when Triton, the relay, the Router or the lane does."""
    left_out: dict[str, str] = {}
    installed = []
    for peer in peers:
        with _told(left_out, peer, tell):
            if not environments.installed(peer):
                tell(f"Installing {peer.title}")
                environments.install(peer)
            installed.append(peer)
    with contextlib.ExitStack() as stack:
        tell("Starting Triton, Shoal and the relay")
        variants = stack.enter_context(subjects.alone(MODEL, traced=False))
        found = [_own(variant) for variant in variants]
        direct = variants[0]
        starter = stack.enter_context(launcher(direct.address))
        for peer in installed:
            with _told(left_out, peer, tell):
                tell(f"Starting {peer.title}")
                found.append(_started(starter, peer))
        yield Measured(found, direct.triton.clock, subjects.version(direct.address), left_out)


@contextlib.contextmanager
def _told(left_out: dict[str, str], peer: Peer, tell: Tell) -> Iterator[None]:
    try:
        yield
    except Unavailable as reason:
        left_out[peer.name] = str(reason)
        tell(f"{peer.title} is left out: {reason}")


def _own(variant: subjects.Variant) -> Subject:
    calls = {one.name: call(variant.address, one) for one in WORKLOADS}
    sizes = {one.name: answer_size(variant.address, one) for one in WORKLOADS}
    proxy = variant.proxy
    return Subject(variant.name, None, calls, sizes, (lambda: proxy) if proxy else None)


def _started(starter: Launcher, peer: Peer) -> Subject:
    running = starter.start(peer)
    how = peer.headers, peer.json
    try:
        sizes = {one.name: _answering(running, one) for one in WORKLOADS}
    except Unavailable:
        running.process.terminate()
        raise
    calls = {one.name: call(running.address, one, *how) for one in WORKLOADS}
    pid = running.process.pid
    return Subject(peer.name, peer, calls, sizes, lambda: Clock(pid, with_children=True))


def _answering(running: Running, workload: Workload) -> int:
    """Waits for an answer, and gives its size. Raises Unavailable."""
    deadline = time.monotonic() + _START_WITHIN
    while True:
        try:
            return answer_size(running.address, workload, running.peer.headers, running.peer.json)
        except Wrong as wrong:
            raise Unavailable(str(wrong)) from wrong
        except (grpc.RpcError, OSError) as error:
            if running.process.poll() is not None:
                raise Unavailable(f"it ended: {running.said()}") from error
            if time.monotonic() > deadline:
                raise Unavailable(f"it does not answer: {running.said()}") from error
            time.sleep(_POLL)
