"""One part, kept running: started, awaited until it is ready, and started again when it dies."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from services.embedded.logfiles import head, open_log, tail
from services.embedded.part import BackOff, Event, Part, State

_LAUNCHER: Final = str(Path(__file__).with_name("launcher.py"))
# Seconds. After SIGKILL a process is gone within milliseconds, unless the kernel itself waits for a
# disk, and then nothing can be done.
_KILL_WITHIN: Final = 10.0


class Keeper:
    """Keeps one part running. `run` is called once, and `stop` from another task.

    `settled` is set once the part has been ready, or will never be. In that case `failure` says
    why, with the end of the log.
    """

    def __init__(self, part: Part, report: Callable[[Event], None], back_off: BackOff) -> None:
        self.part = part
        self.settled = asyncio.Event()
        self.failure: str | None = None
        self._report = report
        self._back_off = back_off
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        deaths = 0
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                how = await self._live()
                if self._stopping.is_set():
                    break
                if not self.settled.is_set():
                    self._fail(how)
                    break
                deaths = self._back_off.deaths(deaths, time.monotonic() - began)
                delay = self._back_off.delay(deaths)
                self._tell(State.DIED, f"{how}; starting it again in {delay:.3g} s")
                await _within(delay, self._stopping.wait())
        finally:
            self._kill()
            self.settled.set()
            self._ended.set()
        if self.failure is None:
            self._tell(State.STOPPED, "stopped")

    async def stop(self, at_once: asyncio.Event) -> None:
        """Send SIGTERM, and SIGKILL after the grace period or `at_once`; wait until it is gone."""
        self._stopping.set()
        if not self._ended.is_set():
            self._tell(State.STOPPING, "stopping")
            self._terminate()
            if not await self._gone(at_once):
                if not at_once.is_set():
                    grace = f"{self.part.stop_within:.3g} s"
                    self._tell(State.STOPPING, f"did not stop within {grace}: killed")
                self._kill()
                await _within(_KILL_WITHIN, self._ended.wait())

    async def restart(self) -> None:
        """Send SIGTERM, and SIGKILL after the grace period. The part restarts as after a death."""
        process = self._process
        if process is None or self._stopping.is_set():
            return
        self._terminate()
        await _within(self.part.stop_within, process.wait())
        if self._process is process and process.returncode is None:
            self._kill()

    async def _gone(self, at_once: asyncio.Event) -> bool:
        """Return whether the part ended by itself, in time and before `at_once`."""
        waits: set[asyncio.Future[Any]] = {
            asyncio.ensure_future(event.wait()) for event in (self._ended, at_once)
        }
        await asyncio.wait(
            waits, timeout=self.part.stop_within, return_when=asyncio.FIRST_COMPLETED
        )
        for wait in waits:
            wait.cancel()
        return self._ended.is_set()

    async def _live(self) -> str:
        """Run the process once, from start to end, and return how it ended."""
        try:
            self._process = process = await self._start()
        except OSError as error:  # out of processes, memory or disk, which may pass
            return f"could not be started ({error.strerror})"
        self._tell(State.STARTING, "starting")
        if self._stopping.is_set():
            self._terminate()
        ended = asyncio.ensure_future(process.wait())
        try:
            unready = await self._until_ready(ended)
            how = _ending(await ended)
        finally:
            self._kill()
            self._process = None  # from now on its id may be another process's
            await asyncio.to_thread(self.part.leftovers, process.pid)
        return unready or how

    async def _start(self) -> asyncio.subprocess.Process:
        with open_log(self.part.log) as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid())),
                *self.part.command,
                env=dict(self.part.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Not on the terminal, whose Ctrl-C is for the supervisor alone.
                start_new_session=True,
            )

    async def _until_ready(self, ended: "asyncio.Future[int]") -> str | None:
        """Wait until the part is ready; return why the process had to be killed, or None."""
        began = time.monotonic()
        probe = asyncio.ensure_future(self.part.ready())
        either: set[asyncio.Future[Any]] = {probe, ended}
        try:
            await asyncio.wait(
                either, timeout=self.part.start_within, return_when=asyncio.FIRST_COMPLETED
            )
            if ended.done() or self._stopping.is_set():
                return None
            if not probe.done():
                self._kill()
                return f"was not ready within {self.part.start_within:.3g} s and was killed"
            probe.result()
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
        self._tell(State.READY, f"ready in {time.monotonic() - began:.1f} s")
        self.settled.set()
        return None

    def _fail(self, how: str) -> None:
        end = tail(self.part.log)
        advice = self.part.advice(head(self.part.log) + end)
        self.failure = "\n".join(
            [f"{self.part.name} {how}. The end of {self.part.log}:", end, *filter(None, [advice])]
        )
        self._tell(State.DIED, how)

    def _terminate(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def _kill(self) -> None:
        """Kill the whole session, including what the process has started and not ended."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _tell(self, state: State, text: str) -> None:
        pid = self._process.pid if self._process and self._process.returncode is None else None
        self._report(Event(time.time(), self.part.name, state, text, pid))


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended by itself with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


async def _within(seconds: float, wait: Awaitable[object]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wait
