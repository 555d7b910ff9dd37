"""Python's caches of compiled modules, made so that Python never writes them again.

They are of the kind `unchecked-hash` (PEP 552), which Python loads without a look at the source.
They are for this interpreter's minor version only.
"""

import importlib.util
import marshal
import sys
from pathlib import Path, PurePosixPath

_UNCHECKED_HASH = (1).to_bytes(4, "little")
HEADER_SIZE = 16  # bytes: magic number, flags, hash of the source


def cache_of(relative: str) -> str | None:
    """Where Python looks for a module's cache; None for what is no Python module."""
    path = PurePosixPath(relative)
    if path.suffix != ".py":
        return None
    return str(path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc")


def header(source: bytes) -> bytes:
    return importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source)


def compiled(source: bytes, path: Path) -> bytes | None:
    """A cache file's content, or None where the source does not compile.

    `path` is what tracebacks will name.
    """
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return header(source) + marshal.dumps(code)
