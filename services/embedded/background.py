"""`shoal up` in a process of its own, for programs: tests, benchmarks, the demo."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from services.common import programs
from services.embedded.runs import Run, sweep
from services.embedded.stack import SAME_WISH

_LAUNCHER: Final = str(Path(__file__).with_name("launcher.py"))
_POLL: Final = 0.02  # seconds
_AT_ONCE_AFTER: Final = SAME_WISH + 0.1  # seconds
_STOP_WITHIN: Final = 60.0  # seconds; longer than the sum of what `shoal up` gives its parts

FREE_PORTS: Final = tuple(
    f"--{name}-port=0"
    for name in (
        "router-grpc",
        "router-http",
        "registry",
        "registry-metrics",
        "controller",
        "controller-metrics",
        "otlp-grpc",
        "otlp-http",
    )
)


class Announced(NamedTuple):
    """What `shoal up --announce` writes; see announcement.py."""

    state: str
    endpoints: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]
    events: list[Mapping[str, Any]]
    pid: int
    run: str  # the prefix of the names of all that the stack makes outside its folders
    folder: Path  # removed with the stack
    data: Path
    memory_budget: int
    max_models: int

    @property
    def tritons(self) -> dict[str, str]:
        """Return `host:port` by server id."""
        return dict(self.endpoints["tritons"])

    def pid_of(self, part: str) -> int:
        """Raises LookupError where the part does not run."""
        number = self.parts[part]["pid"]
        if number is None:
            raise LookupError(f"{part} does not run")
        return int(number)

    def starts(self, part: str) -> int:
        return int(self.parts[part]["starts"])

    def all_ready(self) -> bool:
        return self.state == "ready" and all(
            part["state"] == "ready" for part in self.parts.values()
        )


class BackgroundStack:
    """A stack that starts on entry and ends on exit.

    It takes free ports unless `arguments` say otherwise, and has to be ready within `start_within`
    seconds. It dies with the thread that starts it. Its output is in the file `output` while it
    runs.
    """

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        start_within: float = 90.0,
    ) -> None:
        self._arguments = arguments
        self._environment = {**os.environ, **(environment or {})}
        self._start_within = start_within

    def __enter__(self) -> "BackgroundStack":
        # A run of its own, so that its folder is swept too if this process is killed.
        self._run = Run()
        self._announcement = self._run.folder / "stack.json"
        self.output = self._run.folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid())),
                    *programs.module("services.embedded"),
                    *(f"--announce={self._announcement}", *FREE_PORTS, *self._arguments),
                ],
                env=programs.environment(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self.wait_for(Announced.all_ready, self._start_within)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Stop the stack, with a second signal that kills its parts if they do not end soon."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_AT_ONCE_AFTER)
        self.stop()

    def stop(self, within: float = _STOP_WITHIN) -> int:
        """Send SIGTERM and return the exit status; after `within` seconds, kill it and sweep up.

        Once it has ended, a further call only returns the status again.
        """
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait(within)
            sweep()
            return status
        finally:
            self._run.close()

    def announced(self) -> Announced:
        """Read the current state, which `last` keeps for when the stack has ended."""
        content = json.loads(self._announcement.read_text())
        self.last = Announced(
            content["state"],
            content["endpoints"],
            content["parts"],
            content["events"],
            content["pid"],
            content["run"],
            Path(content["folder"]),
            Path(content["data"]),
            content["memory_budget"],
            content["max_models"],
        )
        return self.last

    def wait_for(self, holds: Callable[[Announced], bool], within: float) -> Announced:
        """Poll until `holds` accepts the state, and return that.

        Raises TimeoutError after `within` seconds, and RuntimeError if the stack has ended, both
        with its output.
        """
        deadline = time.monotonic() + within
        while True:
            if self._announcement.exists() and holds(found := self.announced()):
                return found
            if (status := self.process.poll()) is not None:
                raise RuntimeError(f"shoal up ended with {status}:\n{self._output_tail()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"shoal up took more than {within} s:\n{self._output_tail()}")
            time.sleep(_POLL)

    @property
    def router_grpc(self) -> str:
        return self._address("router_grpc")

    @property
    def router_http(self) -> str:
        return self._address("router_http")

    @property
    def registry(self) -> str:
        return self._address("registry")

    @property
    def controller(self) -> str:
        return self._address("controller")

    @property
    def controllers(self) -> dict[str, str]:
        """Return `host:port` by name of the part."""
        return dict(self.announced().endpoints["controllers"])

    @property
    def collector_http(self) -> str:
        return self._address("collector_http")

    @property
    def tritons(self) -> dict[str, str]:
        return self.announced().tritons

    def _address(self, name: str) -> str:
        return str(self.announced().endpoints[name])

    def _output_tail(self) -> str:
        return self.output.read_text(errors="replace")[-8000:]
