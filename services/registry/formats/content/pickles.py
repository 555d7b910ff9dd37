"""Pickles, walked and never loaded: which globals they would import.

A pickle is a program. Its instructions say which functions and classes it imports and calls, so
that this can be told without running it.
"""

import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any, Final, cast

from services.registry.formats.artifact import Content
from services.registry.formats.refusal import Refusal

_MAX_STEPS: Final = 2_000_000
_MAX_GLOBALS: Final = 10_000
_MAX_LINE: Final = 2**20  # bytes
_KEPT: Final = 2**16  # bytes of a string; longer ones are skipped, they name nothing

# What no model's pickle needs, and every attack does.
_HOSTILE_MODULES: Final = frozenset(
    [
        "_io",
        "_pickle",
        "_posixsubprocess",
        "_thread",
        "asyncio",
        "bdb",
        "cProfile",
        "code",
        "codeop",
        "commands",
        "concurrent",
        "ctypes",
        "dill",
        "fcntl",
        "ftplib",
        "http",
        "httplib",
        "importlib",
        "io",
        "marshal",
        "mmap",
        "multiprocessing",
        "nt",
        "os",
        "pdb",
        "pickle",
        "pip",
        "pkgutil",
        "platform",
        "posix",
        "profile",
        "pty",
        "pydoc",
        "requests",
        "runpy",
        "shutil",
        "signal",
        "smtplib",
        "socket",
        "ssl",
        "subprocess",
        "sys",
        "tempfile",
        "timeit",
        "trace",
        "urllib",
        "urllib2",
        "venv",
        "webbrowser",
        "zipimport",
    ]
)
_HOSTILE_BUILTINS: Final = frozenset(
    [
        "__import__",
        "breakpoint",
        "compile",
        "delattr",
        "eval",
        "exec",
        "execfile",
        "globals",
        "input",
        "locals",
        "open",
        "vars",
    ]
)
_STRINGS: Final = frozenset(
    [
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
    ]
)
# What pickletools says when there is nothing more to read.
_CUT_OFF: Final = ("exhausted", "not enough data", "but only", "no newline")
_MARKS: Final = frozenset({"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "FRAME", "PROTO"})


@dataclass(frozen=True, slots=True)
class PickleImports:
    """What a pickle imports: dotted names, in order. `computed`: it makes up a name as it runs.

    `whole` is false if it holds raw arrays between its instructions, as joblib's do, after which it
    cannot be walked any further.
    """

    names: tuple[str, ...]
    computed: bool = False
    whole: bool = True


def is_pickle(head: bytes) -> bool:
    """Return whether a file that begins so can be a pickle of protocol 2 or later."""
    return len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def imports(content: Content, name: str, start: int = 0) -> PickleImports:
    """Walk a pickle called `name`. Raises Refusal if it is cut off, or no pickle."""
    walk = _Walk()
    reader = cast(IO[bytes], _Reader(content, start))
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(reader)):
            if steps >= _MAX_STEPS:
                raise Refusal(f"{name} is a pickle of more than {_MAX_STEPS} instructions")
            walk.step(opcode.name, argument)
            if len(walk.names) > _MAX_GLOBALS:
                raise Refusal(f"{name} is a pickle that imports more than {_MAX_GLOBALS} names")
            if walk.raw:
                return PickleImports(tuple(walk.names), walk.computed, whole=False)
    except (ValueError, OverflowError, MemoryError, IndexError, UnicodeError) as error:
        cut = any(word in str(error) for word in _CUT_OFF)
        problem = "is a pickle that is cut off" if cut else "is a damaged pickle"
        raise Refusal(f"{name} {problem}") from None
    return PickleImports(tuple(walk.names), walk.computed)


def check_harmless(found: PickleImports, name: str) -> None:
    """Check that a pickle imports nothing that only an attack needs. Raises Refusal."""
    if found.computed:
        raise Refusal(f"{name} is a pickle that hides what it imports")
    for one in found.names:
        module, _, attribute = one.rpartition(".")
        top = module.partition(".")[0]
        builtin = module in ("builtins", "__builtin__", "__builtins__")
        if top in _HOSTILE_MODULES or (builtin and attribute in _HOSTILE_BUILTINS):
            raise Refusal(
                f"{name} is a pickle that would import {one}, which no model needs: do not open "
                "it anywhere"
            )


def shown(names: Iterable[str]) -> str:
    """Return the first names for people, and how many more there are."""
    found = sorted(set(names))
    listed = ", ".join(name[:100] for name in found[:8])
    return f"{listed} and {len(found) - 8} more" if len(found) > 8 else listed or "nothing"


class _Walk:
    """As much of a pickle's stack and memo as names of globals need."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.computed = False
        self.raw = False
        self._memo: dict[int, str | None] = {}
        self._recent: list[str | None] = []  # what was pushed last; None is no text
        self._wrapper = False

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _STRINGS:
            self._push(argument if isinstance(argument, str) else None)
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = self._recent[-1] if self._recent else None
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = self._recent[-1] if self._recent else None
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            self._push(self._memo.get(int(argument)))
        elif opcode in ("GLOBAL", "INST"):
            self._import(*str(argument).split(" ", 1))
        elif opcode == "STACK_GLOBAL":
            if len(self._recent) < 2 or None in self._recent[-2:]:
                self.computed = True
                self._push(None)
            else:
                self._import(*(str(one) for one in self._recent[-2:]))
        elif opcode in ("EXT1", "EXT2", "EXT4"):
            self.computed = True  # a number that stands for a global
        elif opcode == "BUILD" and self._wrapper:
            self.raw = True
        elif opcode not in _MARKS:
            self._push(None)

    def _import(self, module: str, attribute: str = "") -> None:
        name = f"{module}.{attribute}"
        self.names[name] = None
        self._wrapper = self._wrapper or name == "joblib.numpy_pickle.NumpyArrayWrapper"
        self._push(None)

    def _push(self, text: str | None) -> None:
        self._recent = [*self._recent[-1:], text]


class _Reader:
    """Content as `pickletools` reads it, without copying long strings out of it."""

    def __init__(self, content: Content, start: int) -> None:
        self._content = content
        self._at = start

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        start, self._at = self._at, min(self._at + size, len(self._content))
        got = self._at - start
        return _Skipped(got) if got > _KEPT else bytes(self._content[start : self._at])

    def readline(self) -> bytes:
        end = self._content.find(b"\n", self._at, self._at + _MAX_LINE)
        start, self._at = self._at, end + 1 if end >= 0 else len(self._content)
        return bytes(self._content[start : self._at]) if end >= 0 else b""


class _Skipped(bytes):
    """Bytes that were left where they are; only their number is known."""

    _size: int

    def __new__(cls, size: int) -> "_Skipped":
        self = super().__new__(cls)
        self._size = size
        return self

    def __len__(self) -> int:
        return self._size
