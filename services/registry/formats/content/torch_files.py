"""What files of PyTorch have in common: archives with versions, and pickles of tensors."""

import io
import re
import zipfile
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content import pickles, zip_archive
from services.registry.formats.content.pickles import PickleImports
from services.registry.formats.content.zip_archive import Archive
from services.registry.formats.refusal import Refusal

MAX_PICKLE: Final = 64 * 2**20  # bytes; tensors lie beside it

# How files written before torch 1.6 begin: a number, pickled.
LEGACY: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# What rebuilds tensors and nothing else, as torch.load(weights_only=True) has it.
_TENSORS: Final = re.compile(
    r"collections\.OrderedDict"
    r"|_codecs\.encode"
    r"|torch\.(?:Size|device|dtype|Tensor|BoolStorage|\w+Storage|storage\.\w+Storage)"
    r"|torch\.(?:float\d*\w*|double|half|bfloat16|u?int\d*|long|short|bool|complex\d*)"
    r"|torch\._utils\._rebuild_\w+"
    r"|torch\.nn\.parameter\.Parameter|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.serialization\._get_layout"
    r"|builtins\.(?:set|dict|list|tuple|int|float|bool|complex|bytearray)"
)


def files(artifact: Artifact) -> list[str]:
    """Return the files at the top that are zip archives, in order."""
    return [one for one, head in artifact.heads(4) if head == zip_archive.MAGIC]


def with_entry(artifact: Artifact, *entries: str, without: str = "\0") -> list[str]:
    """Return the archives at the top that have all `entries`, and none that begins `without`."""
    return [
        one
        for one in files(artifact)
        if (names := zip_archive.listed(artifact, one)).issuperset(entries)
        and not any(name.startswith(without) for name in names)
    ]


def tensors_only(found: PickleImports) -> bool:
    """Return whether a pickle imports nothing but what rebuilds tensors."""
    return not found.computed and all(map(_TENSORS.fullmatch, found.names))


def others(found: PickleImports) -> list[str]:
    return [name for name in found.names if not _TENSORS.fullmatch(name)]


def pickled(archive: Archive, entry: str) -> PickleImports:
    """Walk the pickle in an archive. Raises Refusal if it is hostile, too."""
    found = pickles.imports(archive.read(entry, MAX_PICKLE), f"{entry} in {archive.name}")
    pickles.check_harmless(found, f"{entry} in {archive.name}")
    return found


def nested(archive: Archive, entry: str) -> PickleImports:
    """Walk the pickle in an archive within an archive. Raises Refusal."""
    name = f"{entry} in {archive.name}"
    raw = archive.read(entry, MAX_PICKLE)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as inner:
            (data,) = (one for one in inner.infolist() if one.filename.endswith("/data.pkl"))
            if data.file_size > MAX_PICKLE:
                raise Refusal(f"{name} has a pickle of {data.file_size} bytes")
            with inner.open(data) as file:
                content = file.read(MAX_PICKLE)
    except Refusal:
        raise
    except Exception:  # zlib and zipfile have many
        raise Refusal(f"{name} is a damaged archive") from None
    found = pickles.imports(content, name)
    pickles.check_harmless(found, name)
    return found


def version(archive: Archive, entry: str) -> int:
    """Return the number in a small file. Raises Refusal."""
    text = archive.read(entry, 64).strip()
    if not text.isdigit() or len(text) > 9:
        raise Refusal(f"{archive.name} has no number in its file {entry}")
    return int(text)


def one_of(found: list[str], usual: str, what: str) -> str:
    """Return the one file, or that of the usual name among several. Raises Refusal."""
    if len(found) == 1:
        return found[0]
    if usual in found:
        return usual
    raise Refusal(f"it has several {what}, {', '.join(found[:5])}: call one {usual}")
