"""What to say about an artifact of no known format."""

from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content import zip_archive
from services.registry.formats.refusal import Refusal

# How files begin that people take for models.
_BEGINNINGS: Final = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file: run `git lfs pull`"),
    (b"<!DOCTYPE html", "is a web page: the download needs a login, or another address"),
    (b"<html", "is a web page: the download needs a login, or another address"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras wrote them: export a SavedModel"),
    (b"GGUF", "is a GGUF file, which no server here opens: take its safetensors"),
    (b"\x7fELF", "is a library, not a model"),
    (b"\x1f\x8b", "is compressed: unpack it first"),
    (b"\xfd7zXZ", "is compressed: unpack it first"),
    (b"BZh", "is compressed: unpack it first"),
)
_ENDINGS: Final = (
    ((".onnx",), "ONNX"),
    ((".pt", ".pth"), "PyTorch"),
    ((".pt2",), "torch.export"),
    ((".plan", ".engine"), "TensorRT"),
    ((".skops",), "skops"),
    ((".pkl", ".pickle", ".joblib"), "a pickle"),
    ((".xml",), "OpenVINO"),
    ((".ubj", ".xgb"), "XGBoost"),
    ((".safetensors",), "safetensors"),
)


def refusal(artifact: Artifact) -> Refusal:
    """Return why nothing recognises the artifact."""
    if not artifact.files:
        return Refusal("it has no files")
    for file, head in artifact.heads(32):
        if not head and (len(artifact.files) == 1 or any(file.endswith(e) for e, _ in _ENDINGS)):
            return Refusal(f"{file} is empty")
        if head[:4] == zip_archive.MAGIC:
            return _archive(artifact, file)
        if head[4:8] == b"TFL3":
            return Refusal(f"{file} is a TensorFlow Lite model: convert the original to ONNX")
        for beginning, what in _BEGINNINGS:
            if head.lower().startswith(beginning.lower()):
                return Refusal(f"{file} {what}")
        if file.endswith(".safetensors"):
            return Refusal(
                f"{file} holds weights and nothing that computes: it needs the config.json of "
                "transformers, or code that builds the module, beside it"
            )
        for endings, kind in _ENDINGS:
            if file.endswith(endings):
                return Refusal(
                    f"{file} is named like {kind}, and its content is not: it begins "
                    f"with {head[:8]!r}"
                )
    shown = ", ".join(list(artifact.files)[:5])
    return Refusal(f"none of its files ({shown[:300]}) has a known format")


def _archive(artifact: Artifact, file: str) -> Refusal:
    try:
        with zip_archive.opened(artifact, file) as archive:
            shown = ", ".join(list(archive.sizes)[:5])
    except Refusal as error:
        return error
    return Refusal(f"{file} is a zip archive of no known format, with {shown[:300] or 'nothing'}")
