"""An environment of its own for each peer, under .venv-peers, with pinned versions."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

from bench.peers.catalog import Peer

_ROOT: Final = Path(__file__).resolve().parents[2]
_PINS: Final = Path(__file__).with_name("pins")
_WITHIN: Final = 900.0  # seconds to install one


class Unavailable(Exception):
    """A peer cannot be measured; the text says why."""


def folder(peer: Peer) -> Path:
    return _ROOT / ".venv-peers" / peer.name


def pins(peer: Peer) -> Path:
    return _PINS / f"{peer.name}.txt"


def program(peer: Peer) -> str:
    """The path of a peer that Debian packs. Raises Unavailable."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    if found := shutil.which(peer.program, path=path):
        return found
    raise Unavailable(f"{peer.program} is not installed: apt-get install {peer.program}")


def installed(peer: Peer) -> bool:
    """Just as it is pinned now. Raises Unavailable where it cannot be installed from here."""
    if not peer.packages:
        return bool(program(peer))
    made = _made(peer)
    return made.exists() and made.read_text() == _wanted(peer)


def install(peer: Peer) -> None:
    """Anew. Raises Unavailable."""
    shutil.rmtree(folder(peer), ignore_errors=True)
    venv.EnvBuilder(symlinks=True).create(folder(peer))
    pip = [sys.executable, "-m", "pip", "--python", str(folder(peer) / "bin" / "python")]
    words = ["install", "--quiet", "--disable-pip-version-check", "--constraint", str(pins(peer))]
    try:
        subprocess.run(
            [*pip, *words, *peer.packages],
            capture_output=True,
            text=True,
            timeout=_WITHIN,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise Unavailable(f"pip could not install it: {said.splitlines()[-1]}") from error
    _made(peer).write_text(_wanted(peer))


def _made(peer: Peer) -> Path:
    return folder(peer) / ".made"


def _wanted(peer: Peer) -> str:
    return "\n".join([sys.version, *peer.packages, pins(peer).read_text()])


def version(peer: Peer) -> str:
    """Of what is installed."""
    if not peer.packages:
        said = subprocess.run([program(peer), "-v"], capture_output=True, text=True, check=True)
        return (said.stdout + said.stderr).strip().rpartition("/")[2]
    name = re.split(r"[\[=<>]", peer.packages[0])[0]
    places = [str(place) for place in folder(peer).glob("lib/python3*/site-packages")]
    (found, *_) = importlib.metadata.Distribution.discover(name=name, path=places)
    return found.version
