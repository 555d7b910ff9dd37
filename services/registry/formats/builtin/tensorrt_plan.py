"""TensorRT plans: engines for one GPU and one version of TensorRT."""

import struct
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content.torch_files import one_of
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal

name = "tensorrt-plan"
backend = "tensorrt"
runs_code = ""

_MAGIC: Final = b"ftrt"
_HEADER: Final = struct.Struct("<4sI16s4B")  # tag, form, sizes, version
_MIN: Final = 256  # bytes; an engine of one layer has thousands


def detect(artifact: Artifact) -> bool:
    return bool(_found(artifact))


def validate(artifact: Artifact) -> Described:
    file = one_of(_found(artifact), "model.plan", "TensorRT plans")
    if artifact.files[file] < _MIN:
        raise Refusal(f"{file} is cut off: a plan has more than {artifact.files[file]} bytes")
    _, form, _, *version = _HEADER.unpack(artifact.read(file, _HEADER.size))
    if form:
        raise Refusal(f"{file} is a plan in form {form}, which is newer than this Shoal knows")
    told = ".".join(map(str, version))
    return Described(
        notes=(
            f"built with TensorRT {told}",
            "works on GPUs like the one that built it; the file does not say which",
        ),
        file=file,
        needs=(("tensorrt", f"{version[0]}.{version[1]}"),),
    )


def _found(artifact: Artifact) -> list[str]:
    return [one for one, head in artifact.heads(4) if head == _MAGIC]
