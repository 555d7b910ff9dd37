"""TorchScript: a zip archive with code in a language of its own, which no Python runs."""

import re
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content import torch_files, zip_archive
from services.registry.formats.content.zip_archive import Archive
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal

name = "torchscript"
backend = "pytorch"
runs_code = ""

# The newest form that torch 2.13 reads.
MAX_VERSION: Final = 10

_MAX_CODE: Final = 4 * 2**20  # bytes
_FORWARD: Final = re.compile(r"  def forward\((.*?)\) -> (.*?):\n", re.DOTALL)


def detect(artifact: Artifact) -> bool:
    return bool(_found(artifact))


def validate(artifact: Artifact) -> Described:
    file = torch_files.one_of(_found(artifact), "model.pt", "TorchScript modules")
    with zip_archive.opened(artifact, file) as archive:
        root = archive.root()
        if not any(entry.startswith(f"{root}code/") for entry in archive.sizes):
            raise Refusal(f"{file} is a TorchScript archive without code")
        number = torch_files.version(archive, f"{root}version")
        if number > MAX_VERSION:
            raise Refusal(
                f"{file} was saved by a newer torch, in version {number} of its form; the servers "
                f"read at most {MAX_VERSION}: save it with an older torch"
            )
        # What a server loads it with knows only TorchScript's own types, and imports nothing else.
        found = torch_files.pickled(archive, f"{root}data.pkl")
        signature = _signature(archive, root, found.names)
    return Described(notes=(f"TorchScript version {number}", *signature), file=file)


def _found(artifact: Artifact) -> list[str]:
    return torch_files.with_entry(artifact, "constants.pkl", "version", "data.pkl")


def _signature(archive: Archive, root: str, names: tuple[str, ...]) -> list[str]:
    """Return what the module's forward takes and returns, as its code has it."""
    top = next((one for one in names if one.startswith("__torch__.")), "")
    path, _, cls = top.rpartition(".")
    entry = f"{root}code/{path.replace('.', '/')}.py"
    if entry not in archive.sizes:
        return []
    code = archive.read(entry, _MAX_CODE).decode(errors="replace")
    _, _, body = code.partition(f"class {cls}(Module):")
    match = _FORWARD.search(body)
    if not match:
        return []
    _, _, arguments = " ".join(match[1].split()).partition(", ")
    return [f"forward({arguments}) -> {match[2]}"]
