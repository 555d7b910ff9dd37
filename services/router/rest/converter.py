"""Converts large JSON in processes of its own, so that only its sender waits for it.

No JSON parser releases Python's interpreter lock while it reads, at some 50 MiB a second.

Such a process reads pickled pairs of a function and its arguments from its standard input, and
writes the results to its standard output. It ends when its input ends, and thus together with
whoever started it."""

import asyncio
import contextlib
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final, TypeVar, TypeVarTuple, cast

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from services.common import programs
from services.common.tasks import TaskScope
from services.router.core.errors import ConverterLost
from services.router.core.rest.values import WrongRequest

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Outcome = tuple[object, Exception | None]

LARGE: Final = 1 << 17  # bytes of JSON, or of tensors that become JSON; takes some 2 ms
IDLE_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 1.0
GRACE_SECONDS: Final = 1.0
_ENDED: Final = (
    OSError,
    EOFError,
    pickle.UnpicklingError,
)  # raised by the pipes of a process that has ended
# A machine that runs out of memory kills this process before the Router.
_OOM_SCORE: Final = Path("/proc/self/oom_score_adj")
_FIRST_TO_GO: Final = "1000"


class Converter:
    """Runs conversions of JSON, the large ones in processes of its own.

    There are at most `processes` of them. They start when they are first needed, and end when none
    was used for IDLE_SECONDS."""

    def __init__(self, processes: int = 1) -> None:
        self._slots = asyncio.Semaphore(processes)
        self._threads = ThreadPoolExecutor(processes, "json")
        self._idle: list[_Process] = []
        self._running = TaskScope("conversions of JSON")
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, size: int, convert: Callable[[*Ts], T], *given: *Ts) -> T:
        """Return the result of `convert` for `given`, of which `size` bytes are converted. Both
        have to be picklable.

        Raises what `convert` raises, and ConverterLost. After a cancellation the process gets
        GRACE_SECONDS more, which is about as long as starting another one takes."""
        if size <= LARGE:
            return convert(*given)
        await self._slots.acquire()
        work = self._running.start(self._in_process(size, convert, given), awaited=True)
        work.add_done_callback(self._release_slot)
        try:
            found, error = await asyncio.shield(work)
            if error is not None:
                raise error
            return cast("T", found)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(GRACE_SECONDS, work.cancel)
            raise
        finally:
            # Both refer to the error, which refers to this frame and the arguments.
            del work
            error = None

    async def _in_process(
        self, size: int, convert: Callable[..., object], given: tuple[object, ...]
    ) -> Outcome:
        try:
            process = self._process()
        except OSError as error:
            raise _lost(size, f"did not start: {error}") from error
        loop = asyncio.get_running_loop()
        try:
            outcome = await loop.run_in_executor(self._threads, process.run, convert, given)
        except BaseException as error:
            process.kill()
            self._threads.submit(process.end)
            if isinstance(error, _ENDED):
                raise _lost(size, "has ended before") from error
            raise
        self._idle.append(process)
        self._restart_idle_timer(loop)
        return outcome

    def _release_slot(self, work: asyncio.Task[Outcome]) -> None:
        self._slots.release()

    def _process(self) -> "_Process":
        while self._idle:
            process = self._idle.pop()
            if process.is_alive():
                return process
            self._threads.submit(process.end)
        return _Process()

    def _restart_idle_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(IDLE_SECONDS, self._end_idle)

    def _end_idle(self) -> None:
        while self._idle:
            self._threads.submit(self._idle.pop().end)

    async def close(self) -> None:
        """End all processes."""
        await self._running.close()
        if self._timer is not None:
            self._timer.cancel()
        self._end_idle()
        await asyncio.to_thread(self._threads.shutdown)


def _lost(size: int, what: str) -> ConverterLost:
    return ConverterLost(size=size, what=what, retry_after=RETRY_SECONDS)


class _Process:
    """A process that converts JSON."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            programs.code(f"from {__name__} import main; main()"),
            env=programs.environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # out of reach of Ctrl-C, which is meant for the Router
        )

    def run(self, convert: Callable[..., object], given: tuple[object, ...]) -> Outcome:
        """Return the outcome of a conversion. Raises one of _ENDED if the process has ended."""
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        _write((convert, given), to)
        return cast("Outcome", pickle.load(back))  # noqa: S301

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError), self._process:
            pass  # waits, and closes both pipes


class _Pickler(pickle.Pickler):
    """Pickles memoryviews, and protobuf messages: those of tritonclient claim to come from modules
    that do not exist."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, memoryview):
            return memoryview, (pickle.PickleBuffer(value),)
        if isinstance(value, Message):
            return _message, (value.DESCRIPTOR.full_name, value.SerializeToString())
        return NotImplemented


def _message(name: str, serialized: bytes) -> Message:
    kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
    return kind.FromString(serialized)


def _write(value: object, to: IO[bytes]) -> None:
    _Pickler(to, pickle.HIGHEST_PROTOCOL).dump(value)
    to.flush()


def _outcome(convert: Callable[..., object], given: tuple[object, ...]) -> Outcome:
    try:
        return convert(*given), None
    except WrongRequest as refused:
        return None, refused
    except Exception:
        return None, RuntimeError(traceback.format_exc())


def _serve(given: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        _write(_outcome(*pickle.load(given)), answers)  # noqa: S301


def main() -> None:
    """Convert JSON until the standard input ends."""
    with contextlib.suppress(OSError):
        _OOM_SCORE.write_text(_FIRST_TO_GO)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        _serve(sys.stdin.buffer, answers)
