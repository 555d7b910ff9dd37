"""Starts peers, each under a keeper of its own, and ends them all."""

import contextlib
import getpass
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import IO, Final, NamedTuple

from bench.peers import environments, keeper
from bench.peers.catalog import Peer
from bench.peers.environments import Unavailable
from services.embedded.ports import LOOPBACK, pick

_ROOT: Final = Path(__file__).resolve().parents[2]
_SERVERS: Final = Path(__file__).with_name("servers")
_PORTS: Final = ("port", "http", "metrics")


class Running(NamedTuple):
    """`log`: what it has written."""

    peer: Peer
    address: str
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]

    def said(self) -> str:
        """The end of its log, on one line."""
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - 2000))
        lines = self.log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


class Launcher:
    """Peers run until `close`."""

    def __init__(self, scratch: Path, triton: str) -> None:
        self._scratch = scratch
        self._triton = triton
        self._running: list[Running] = []

    def start(self, peer: Peer) -> Running:
        """Raises Unavailable."""
        place = self._place(peer)
        for name, source in peer.files.items():
            path = Path(place["folder"], name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(filled(_SERVERS.joinpath(source).read_text(), place))
        if peer.stubs:
            _write_stubs(place["folder"])
        log = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115  `close` closes it
        process = subprocess.Popen(
            [
                *(sys.executable, keeper.__file__, str(os.getpid())),
                *(filled(word, place) for word in peer.command),
            ],
            cwd=place["folder"],
            env={**os.environ, **{key: filled(text, place) for key, text in peer.settings.items()}},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        running = Running(peer, f"{LOOPBACK}:{place['port']}", process, log)
        self._running.append(running)
        return running

    def close(self) -> None:
        for running in self._running:
            running.process.terminate()
        for running in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it ends, only later
                running.process.wait(2 * keeper.GRACE)
            running.log.close()

    def _place(self, peer: Peer) -> dict[str, str]:
        folder = self._scratch / peer.name
        folder.mkdir()
        ports = dict(zip(_PORTS, map(str, pick(len(_PORTS))), strict=True))
        host, _, upstream = self._triton.rpartition(":")
        own = {"program": environments.program(peer)} if peer.program else {}
        return {
            **ports,
            **own,
            "bin": str(environments.folder(peer) / "bin"),
            "servers": str(_SERVERS),
            "folder": str(folder),
            "triton": self._triton,
            "host": host,
            "upstream": upstream,
            "user": getpass.getuser(),
        }


@contextlib.contextmanager
def launcher(triton: str) -> Iterator[Launcher]:
    """`triton`: host:port of the server that proxies stand in front of."""
    with tempfile.TemporaryDirectory(prefix="shoal-peers-") as scratch:
        found = Launcher(Path(scratch), triton)
        try:
            yield found
        finally:
            found.close()


def filled(text: str, place: Mapping[str, str]) -> str:
    """Raises KeyError for a `$word` that `place` lacks."""
    return Template(text).substitute(place)


def _write_stubs(folder: str) -> None:
    protos = _ROOT / "third_party" / "triton"
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}"),
        *(f"--python_out={folder}", f"--grpc_python_out={folder}"),
        *("grpc_service.proto", "model_config.proto"),
    ]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"its stubs could not be made: {error}") from error
