"""Python's caches of compiled modules, made so that Python never rewrites them.

They are of the kind `unchecked-hash` (PEP 552), which Python loads without looking at the source,
and fit only this interpreter's minor version.
"""

import importlib.util
import marshal
import sys
from pathlib import Path, PurePosixPath

_UNCHECKED_HASH = (1).to_bytes(4, "little")
HEADER_SIZE = 16  # bytes: magic number, flags, hash of the source


def cache_of(relative: str) -> str | None:
    """Return where Python looks for a module's cache, or None if it is not a Python module."""
    path = PurePosixPath(relative)
    if path.suffix != ".py":
        return None
    return str(path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc")


def header(source: bytes) -> bytes:
    """Return the first HEADER_SIZE bytes of a source's cache."""
    return importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source)


def compiled(source: bytes, path: Path) -> bytes | None:
    """Return a cache file's content, or None if the source does not compile.

    Tracebacks will name `path`.
    """
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return header(source) + marshal.dumps(code)
