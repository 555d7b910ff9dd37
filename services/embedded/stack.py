"""The life of a stack in the foreground, from sweeping dead runs to removing the last folder."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from rich.console import Console

from services.embedded import fleet, leftovers, logfiles, runs
from services.embedded.announcement import Announcement
from services.embedded.completer import Completer
from services.embedded.display import Display, Terminal, swept
from services.embedded.errors import CannotStart
from services.embedded.imported import imported
from services.embedded.part import Event
from services.embedded.parts import Plan, plan
from services.embedded.ports import Claims
from services.embedded.runs import Run
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Supervisor

EXIT_KILLED: Final = 130  # a second signal cut the stop short
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds. Whoever signals a process group often signals its members too: `timeout`, or make, which
# passes on a SIGTERM that the service manager has sent to both.
SAME_WISH: Final = 0.3


class Interrupts:
    """The signals of a process: the first asks it to stop, the next to end at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.at_once = asyncio.Event()
        self._first = 0.0
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            # Not the loop's own handlers: they end with it, and one more Ctrl-C would show a
            # traceback.
            signal.signal(number, self._wake)

    def _wake(self, number: int, frame: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: all is done
            self._loop.call_soon_threadsafe(self._on_signal)

    def _on_signal(self) -> None:
        now = time.monotonic()
        if not self.stop.is_set():
            self._first = now
            self.stop.set()
        elif now - self._first > SAME_WISH:
            self.at_once.set()


def run(settings: StackSettings) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP, and ignore those afterwards, as the process ends.

    Return the exit status; errors are printed.
    """
    try:
        return asyncio.run(_run(settings, Terminal()))
    except CannotStart as error:
        Terminal(stderr=True).print(
            f"shoal up: {error}", markup=False, highlight=False, soft_wrap=True
        )
        return error.exit_status
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the process is about to end


async def _run(settings: StackSettings, console: Console) -> int:
    interrupts = Interrupts()
    for found in runs.sweep():
        console.print(swept(found), markup=False, highlight=False, soft_wrap=True)
    with _run_folder() as run, _data_folder(settings, run) as data:
        claims = Claims()
        with contextlib.closing(claims):
            planned = plan(settings, run, data, claims, os.environ)
        await asyncio.sleep(0)  # a signal that came meanwhile
        if not interrupts.stop.is_set():
            await _serve(planned, interrupts, console)
    return EXIT_KILLED if interrupts.at_once.is_set() else 0


async def _serve(planned: Plan, interrupts: Interrupts, console: Console) -> None:
    began = time.monotonic()
    announcement = Announcement(planned.settings.announce, planned)
    display = Display(console, [part.name for part in planned.parts])
    for note in planned.notes:
        display.line(f"Note: {note}", "yellow")

    def report(event: Event) -> None:
        announcement.event(event)
        display.event(event)

    def when_up() -> None:
        announcement.state("ready")
        beside.append(asyncio.create_task(_show(planned, display, time.monotonic() - began)))
        up.set()

    up = asyncio.Event()
    completer = Completer(planned.completing, planned.endpoints.registry)
    logged = (*planned.parts, planned.completing.part)
    for part in logged:
        logfiles.begin(part.log)
    leftovers.adopt_orphans()
    supervisor = Supervisor(planned.waves, report)
    listening = [
        asyncio.create_task(work)
        for address in planned.endpoints.controllers.values()
        for work in (
            fleet.tell(address, display.line),
            fleet.restarts(address, display.line, supervisor.restart),
        )
    ]
    listening.append(asyncio.create_task(_complete(completer, up)))
    beside = [
        *listening,
        asyncio.create_task(logfiles.bound([part.log for part in logged])),
        asyncio.create_task(_report_stop(interrupts, announcement, display)),
        asyncio.create_task(_stop_listening(interrupts, listening)),
    ]
    try:
        await supervisor.run(interrupts.stop, interrupts.at_once, when_up)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        display.close()
        announcement.state("stopped")


async def _complete(completer: Completer, up: asyncio.Event) -> None:
    """Complete configs from when the stack is up: the start has more urgent work."""
    await up.wait()
    await completer.run()


async def _show(planned: Plan, display: Display, seconds: float) -> None:
    """Show the summary of a stack that took `seconds` to start."""
    display.up(planned, seconds, await imported(planned.endpoints.registry))


async def _stop_listening(
    interrupts: Interrupts, listening: Iterable["asyncio.Task[None]"]
) -> None:
    """Stop listening first: a Controller that stops waits for its listeners."""
    await interrupts.stop.wait()
    for task in listening:
        task.cancel()


async def _report_stop(
    interrupts: Interrupts, announcement: Announcement, display: Display
) -> None:
    await interrupts.stop.wait()
    display.close()
    announcement.state("stopping")
    display.line("Stopping. Press Ctrl-C again to kill everything at once.")
    await interrupts.at_once.wait()
    display.line("Killing everything.")


@contextlib.contextmanager
def _run_folder() -> Iterator[Run]:
    run = Run()
    try:
        yield run
    finally:
        run.close()


@contextlib.contextmanager
def _data_folder(settings: StackSettings, run: Run) -> Iterator[Path]:
    """Lock the user's data folder, which stays, or one that is removed with the run."""
    folder = settings.data or run.folder / "data"
    lock = runs.lock_data(folder)
    try:
        yield folder
    finally:
        lock.close()
