"""Large JSON is converted in a process of its own: whoever sends it waits for it, nobody else does.

No parser of JSON lets go of Python's interpreter while it reads, and it reads some 50 MiB a second.

A process reads pairs of a function and its arguments, pickled, from its standard input, and writes
what comes of them to its standard output. It ends when its input does: with whoever started it.
"""

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
from services.router.core.errors import ConverterLost
from services.router.core.rest.values import Refused

Found = TypeVar("Found")
Given = TypeVarTuple("Given")
Outcome = tuple[object, Exception | None]

LARGE: Final = 1 << 17  # bytes of JSON, or of what becomes JSON: some 2 ms
IDLE_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 1.0
GRACE_SECONDS: Final = 1.0
_ENDED: Final = (OSError, EOFError, pickle.UnpicklingError)  # what its pipes say then
# A machine without memory ends this process before the Router.
_OOM_SCORE: Final = Path("/proc/self/oom_score_adj")
_FIRST_TO_GO: Final = "1000"


class Converter:
    """`processes`: as many are running at most, each from its first use until none was in use for
    IDLE_SECONDS."""

    def __init__(self, processes: int = 1) -> None:
        self._places = asyncio.Semaphore(processes)
        self._threads = ThreadPoolExecutor(processes, "json")
        self._idle: list[_Process] = []
        self._running: set[asyncio.Task[Outcome]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, size: int, convert: Callable[[*Given], Found], *given: *Given) -> Found:
        """What `convert` makes of what is `given`; both as pickle takes them, `size` bytes of it to
        be converted. Raises what `convert` raises, and ConverterLost. When it is cancelled, the
        process gets GRACE_SECONDS more: to start another takes about as long."""
        if size <= LARGE:
            return convert(*given)
        await self._places.acquire()
        work = asyncio.create_task(self._apart(size, convert, given))
        self._running.add(work)
        work.add_done_callback(self._over)
        try:
            found, error = await asyncio.shield(work)
            if error is not None:
                raise error
            return cast("Found", found)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(GRACE_SECONDS, work.cancel)
            raise
        finally:
            # Either knows the error, which knows this frame and what is given.
            del work
            error = None

    async def _apart(
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
        self._rest(loop)
        return outcome

    def _over(self, work: asyncio.Task[Outcome]) -> None:
        self._running.remove(work)
        self._places.release()
        if not work.cancelled():
            work.exception()  # nobody may wait for it any more

    def _process(self) -> "_Process":
        while self._idle:
            process = self._idle.pop()
            if process.is_alive():
                return process
            self._threads.submit(process.end)
        return _Process()

    def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(IDLE_SECONDS, self._end_idle)

    def _end_idle(self) -> None:
        while self._idle:
            self._threads.submit(self._idle.pop().end)

    async def close(self) -> None:
        for work in self._running:
            work.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        self._end_idle()
        await asyncio.to_thread(self._threads.shutdown)


def _lost(size: int, what: str) -> ConverterLost:
    return ConverterLost(size=size, what=what, retry_after=RETRY_SECONDS)


class _Process:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            programs.code(f"from {__name__} import main; main()"),
            env=programs.environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # out of reach of Ctrl-C, which is for whoever started it
        )

    def run(self, convert: Callable[..., object], given: tuple[object, ...]) -> Outcome:
        """Raises one of _ENDED when the process has ended."""
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
    """Takes memoryviews, and messages of protobuf: tritonclient's say that they are of modules that
    there are not."""

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
    except Refused as refused:
        return None, refused
    except Exception:
        return None, RuntimeError(traceback.format_exc())


def _serve(given: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        _write(_outcome(*pickle.load(given)), answers)  # noqa: S301


def main() -> None:
    with contextlib.suppress(OSError):
        _OOM_SCORE.write_text(_FIRST_TO_GO)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        _serve(sys.stdin.buffer, answers)
