"""Imports that would only slow down the start of a service's process.

Nothing is missing: what is put off here is imported when somebody uses it.
"""

import contextlib
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any, Final

TRITON: Final = "tritonclient.grpc"
MESSAGES: Final = frozenset({"model_config_pb2", "service_pb2", "service_pb2_grpc"})


class _MessagesFirst(ModuleType):
    """`tritonclient.grpc`: Triton's messages at once, and the client, which needs numpy, when one
    of its names is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name in MESSAGES:
            return importlib.import_module(f"{TRITON}.{name}")
        if name.startswith("__"):
            raise AttributeError(name)
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(self)
        return getattr(self, name)


def put_off_client() -> None:
    """Have `tritonclient.grpc` import its client when it is used."""
    if TRITON in sys.modules or importlib.util.find_spec("tritonclient") is None:
        return
    spec = importlib.util.find_spec(TRITON)
    if spec is not None:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _MessagesFirst
        sys.modules[TRITON] = module


def leave_out_rich() -> None:
    """Have structlog do without rich, which it would take for tracebacks: ours are plain text."""
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # not to be found, meanwhile
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("structlog")
    finally:
        del sys.modules["rich"]
