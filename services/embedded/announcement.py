"""A JSON file that tells programs what runs where. Every change writes the whole file anew."""

import contextlib
import json
import os
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from services.embedded.errors import BadSettings
from services.embedded.part import Event, State
from services.embedded.parts import Plan

_EVENTS: Final = 500  # the newest are kept


class Announcement:
    """The file at `path`; with None, nothing is written.

    Raises BadSettings if it cannot be written to at the start. Later the stack matters more than
    the file, and errors are ignored.
    """

    def __init__(self, path: Path | None, plan: Plan) -> None:
        self._path = path
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS)
        self._parts: dict[str, dict[str, Any]] = {
            part.name: {"state": State.WAITING, "pid": None, "starts": 0} for part in plan.parts
        }
        self._fixed = {
            "pid": os.getpid(),
            "run": plan.run.name,
            "folder": str(plan.run.folder),
            "data": str(plan.data),
            "memory_budget": plan.budget,
            "max_models": plan.settings.max_models,
            "endpoints": asdict(plan.endpoints),
        }
        self._state = "starting"
        try:
            self._write()
        except OSError as error:
            raise BadSettings(f"--announce: {path} cannot be written: {error.strerror}") from error

    def state(self, state: str) -> None:
        """Set the stack's state: starting, ready (all parts have been), stopping or stopped."""
        self._state = state
        self._rewrite()

    def event(self, event: Event) -> None:
        """Add an event, and set the state of its part."""
        part = self._parts[event.part]
        part.update(state=event.state, pid=event.pid)
        part["starts"] += event.state is State.STARTING
        self._events.append(asdict(event))
        self._rewrite()

    def _rewrite(self) -> None:
        with contextlib.suppress(OSError):
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        content = {
            "state": self._state,
            **self._fixed,
            "parts": self._parts,
            "events": list(self._events),
        }
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.write_text(json.dumps(content, indent=1))
        draft.replace(self._path)
