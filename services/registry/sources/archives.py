"""Archives, unpacked so that nothing in them can leave its folder, or fill the disk."""

from typing import Final

from services.registry.sources.origin import Archive

_SUFFIXES: Final[dict[str, Archive]] = {
    ".tar": "tar",
    ".tar.gz": "tar+gzip",
    ".tgz": "tar+gzip",
    ".tar.zst": "tar+zstd",
    ".zip": "zip",
}


def form_of(path: str) -> Archive:
    """Return how a file is packed, by its name; "" for one that is no archive."""
    name = path.lower()
    return next((form for suffix, form in _SUFFIXES.items() if name.endswith(suffix)), "")
