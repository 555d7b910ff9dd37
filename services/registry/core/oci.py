"""Manifests of OCI artifacts: which layers are files, which are archives, and what they are called.

Three layouts are told apart: what ORAS pushes (files with a title, folders as archives), ModelPack
(layers with media types of their own), and images, whose layers are archives without a title.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.registry.core.errors import ContentMismatch, UnsafeContent

MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"

_MODEL_LAYER: Final = "application/vnd.cncf.model."
_TITLE: Final = "org.opencontainers.image.title"
_FILE_PATH: Final = "org.cncf.model.filepath"
_UNPACK: Final = "io.deis.oras.content.unpack"
# The type that oras-py gives to folders, without saying that they are to be unpacked.
_FOLDER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_TEXT: Final = 5000  # characters of an annotation
_MAX_TEXTS: Final = 200  # annotations
_ARCHIVES: Final[Mapping[str, str]] = {
    "tar": "tar",
    "tar+gzip": "tar+gzip",
    "tar.gzip": "tar+gzip",
    "tar+zstd": "tar+zstd",
}


@dataclass(frozen=True, slots=True)
class Blob:
    """Content of a registry: its digest, its size in bytes, and its media type."""

    digest: str
    size: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a manifest: where it lies, and how it is packed ("" is a plain file)."""

    blob: Blob
    path: str
    archive: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in an artifact."""

    config: Blob | None
    layers: tuple[Layer, ...]
    about: Mapping[str, str]


def read_index(body: bytes) -> list[Blob]:
    """Return the manifests that an index names. Raises ContentMismatch."""
    said = _object(body).get("manifests")
    return [_blob(one) for one in said] if isinstance(said, list) else []


def read_manifest(body: bytes) -> Manifest:
    """Read a manifest. Raises ContentMismatch, and UnsafeContent for layers that cannot be told."""
    said = _object(body)
    layers, config = said.get("layers"), said.get("config")
    if not isinstance(layers, list):
        raise ContentMismatch(path="the manifest", problem="it has no layers")
    annotations = _texts(said.get("annotations"))
    about = {f"annotation.{key}": value for key, value in annotations.items()}
    described = _blob(config) if isinstance(config, Mapping) else None
    kind = said.get("artifactType") or (described.media_type if described else "")
    if isinstance(kind, str) and kind:
        about["media_type"] = kind
    return Manifest(described, tuple(map(_layer, layers)), about)


def read_model_config(body: bytes) -> dict[str, str]:
    """Return what a ModelPack config says about its model, as provenance."""
    said = _object(body)
    about: dict[str, str] = {}
    for part in ("descriptor", "config"):
        for key, value in (said.get(part) or {}).items():
            if isinstance(value, str | int | float):
                about[f"modelpack.{key}"] = str(value)
            elif isinstance(value, list):
                about[f"modelpack.{key}"] = ",".join(map(str, value))
    return about


def _layer(said: Any) -> Layer:
    blob = _blob(said)
    annotations = _texts(said.get("annotations"))
    path = annotations.get(_FILE_PATH) or annotations.get(_TITLE) or ""
    archive = _ARCHIVES.get(blob.media_type.rpartition(".")[2]) or next(
        (form for end, form in _ARCHIVES.items() if blob.media_type.endswith(f".{end}")), ""
    )
    if annotations.get(_UNPACK) == "true":
        archive = archive or "tar+gzip"
    elif path and not blob.media_type.startswith(_MODEL_LAYER) and blob.media_type != _FOLDER:
        archive = ""  # a file: ORAS gives files the type of a layer, too
    if archive:
        path = f"{blob.digest[7:23]}.tar"
    elif not path:
        raise UnsafeContent(
            path=blob.digest, problem=f"a layer of type {blob.media_type[:100]} has no title"
        )
    return Layer(blob, path, archive)


def _blob(said: Any) -> Blob:
    if not isinstance(said, Mapping):
        raise ContentMismatch(path="the manifest", problem="a descriptor in it is no object")
    digest, size, media_type = (said.get(key) for key in ("digest", "size", "mediaType"))
    if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise ContentMismatch(
            path="the manifest", problem="a digest in it is not sha256: and 64 hexadecimal digits"
        )
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ContentMismatch(path=digest, problem="its size in the manifest is no size")
    return Blob(digest, size, media_type if isinstance(media_type, str) else "")


def _texts(said: Any) -> dict[str, str]:
    if not isinstance(said, Mapping):
        return {}
    texts = {key: value[:_MAX_TEXT] for key, value in said.items() if isinstance(value, str)}
    return dict(list(texts.items())[:_MAX_TEXTS])


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, Mapping):
        raise ContentMismatch(path="the manifest", problem="it is no JSON object")
    return said
