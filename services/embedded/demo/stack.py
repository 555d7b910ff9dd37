"""The demo's stack, which reports what starts, and stops in order whatever signals come."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from services.embedded.background import Announced, BackgroundStack
from services.embedded.part import State
from services.embedded.stack import SAME_WISH

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Variables of `shoal up` that would change what is shown. Where traces go, the memory and Triton's
# environment stay the user's choice.
_UNSET: Final = {"SHOAL_DATA": "", "SHOAL_REPOSITORY": ""}
# Milliseconds between two exports of spans, so that traces are soon complete.
_BATCH_DELAY: Final = "100"
_EXIT_LATE: Final = 70  # like `shoal up` when a part does not come up
STOP_WITHIN: Final = 60.0  # seconds; as BackgroundStack's own


class Interrupted(BaseException):
    """A signal asked for an end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


class NotUp(Exception):
    """The stack did not come up; its output is in the text."""

    def __init__(self, text: str, exit_status: int) -> None:
        super().__init__(text)
        self.exit_status = exit_status


class DemoStack(BackgroundStack):
    """One Triton with room for `places` models, which reports its parts' states through `say`.

    A signal raises Interrupted while the stack starts, or in or at the next `interruptible`. A
    further one, or one while it stops, kills it at once. On exit it gets the time to stop.
    """

    def __init__(self, repository: Path, places: int, say: Callable[[str], None]) -> None:
        super().__init__(
            f"--repository={repository}",
            f"--max-models={places}",
            "--servers=1",
            "--trace-ratio=0",  # the demo asks for the traces that it wants
            environment={
                "OTEL_BSP_SCHEDULE_DELAY": os.environ.get("OTEL_BSP_SCHEDULE_DELAY", _BATCH_DELAY),
                **_UNSET,
            },
        )
        self._say = say
        self._told = 0
        self._number = 0
        self._since = 0.0
        self._raising = False
        self._stopping = False

    def stop(self, within: float = STOP_WITHIN) -> int:
        if self.process.poll() is not None:
            return super().stop(within)
        self._stopping = True
        began = time.monotonic()
        try:
            self._say("\nStopping everything. Press Ctrl-C to kill it at once.")
        finally:
            status = super().stop(within)
        self._say(f"Stopped after {time.monotonic() - began:.1f} s. Nothing is left running.")
        return status

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for(self, holds: Callable[[Announced], bool], within: float) -> Announced:
        """Wait as BackgroundStack does, and report each state. Raises NotUp."""

        def told_and_holds(now: Announced) -> bool:
            self._raise_pending()
            self._tell(now)
            return holds(now)

        try:
            return super().wait_for(told_and_holds, within)
        except RuntimeError as error:
            raise NotUp(str(error), self.process.returncode) from error
        except TimeoutError as error:
            raise NotUp(str(error), _EXIT_LATE) from error

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, earlier in before.items():
                signal.signal(number, earlier)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        self._raising = True
        try:
            self._raise_pending()
            yield
        finally:
            self._raising = False

    def _raise_pending(self) -> None:
        if self._number:
            raise Interrupted(self._number)

    def _on_signal(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if not self._number:
            self._number, self._since = number, now
            if self._raising:
                self._raising = False
                raise Interrupted(number)
            if self._stopping:
                self.process.send_signal(number)
        elif now - self._since > SAME_WISH:
            self.process.send_signal(number)

    def _tell(self, now: Announced) -> None:
        for event in now.events[self._told :]:
            if event["state"] != State.STARTING:
                self._say(f"  {event['part']:<12}{event['text']}")
        self._told = len(now.events)
