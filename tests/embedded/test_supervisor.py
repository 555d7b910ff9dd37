"""The supervisor, with real processes."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil
import pytest

from services.embedded.errors import PartFailed
from services.embedded.leftovers import is_alive
from services.embedded.part import BackOff, Part, State
from services.embedded.supervisor import Supervisor
from tests.support.embedded_children import DEADLINE_S, HANG, SERVE, Told, part

QUICK = BackOff(first=0.05, longest=0.2, healthy_after=60.0)


class Running:
    def __init__(self) -> None:
        self.told = Told()
        self.stop = asyncio.Event()
        self.at_once = asyncio.Event()
        self.up = asyncio.Event()


@contextlib.asynccontextmanager
async def supervised(*waves: Sequence[Part], back_off: BackOff = QUICK) -> AsyncIterator[Running]:
    """Yields when all parts are ready; stops them in the end."""
    running = Running()
    supervisor = Supervisor(waves, running.told, back_off)
    async with asyncio.timeout(2 * DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run(running.stop, running.at_once, running.up.set))
        await running.up.wait()
        yield running
        running.stop.set()


async def test_a_killed_part_is_started_again_later_each_time(tmp_path: Path) -> None:
    async with supervised([part(tmp_path, "worker")]) as running:
        told = running.told
        for death in (1, 2, 3):
            ready = await told.reached("worker", State.READY, death)
            assert ready.pid
            os.kill(ready.pid, signal.SIGKILL)
        healed = await told.reached("worker", State.READY, 4)

    deaths = told.of("worker", State.DIED)
    assert [event.text for event in deaths] == [
        "was ended by SIGKILL; starting it again in 0.05 s",
        "was ended by SIGKILL; starting it again in 0.1 s",
        "was ended by SIGKILL; starting it again in 0.2 s",
    ]
    starts = told.of("worker", State.STARTING)[1:]
    for died, start, delay in zip(deaths, starts, (0.05, 0.1, 0.2), strict=True):
        assert start.time - died.time >= delay
    assert healed.pid not in {event.pid for event in told.of("worker", State.READY)[:3]}


def test_back_off_is_bounded_and_forgets_after_a_healthy_life() -> None:
    back_off = BackOff(first=0.25, longest=30.0, healthy_after=60.0)
    assert [back_off.delay(deaths) for deaths in (1, 2, 3, 7, 8, 5000)] == [
        0.25,
        0.5,
        1.0,
        16.0,
        30.0,
        30.0,
    ]
    assert back_off.deaths(before=6, lived=59.0) == 7
    assert back_off.deaths(before=6, lived=60.0) == 1


def test_a_part_that_is_killed_every_ten_seconds_starts_again_at_once() -> None:
    back_off, deaths = BackOff(), 0
    for _ in range(20):
        deaths = back_off.deaths(deaths, lived=10.0 - back_off.delay(1))
        assert back_off.delay(deaths) == back_off.first < 1.0


async def test_waves_stop_one_after_the_other(tmp_path: Path) -> None:
    waves = [[part(tmp_path, "front")], [part(tmp_path, "a"), part(tmp_path, "b")]]
    async with supervised(*waves, [part(tmp_path, "last")]) as running:
        pass
    ends = [
        (event.part, event.state)
        for event in running.told.events
        if event.state in (State.STOPPING, State.STOPPED)
    ]
    assert ends[:2] == [("front", State.STOPPING), ("front", State.STOPPED)]
    assert {part for part, _ in ends[2:6]} == {"a", "b"}
    assert ends[6:] == [("last", State.STOPPING), ("last", State.STOPPED)]
    assert [(tmp_path / f"{name}.log").read_text() for name in ("front", "a", "b", "last")] == [
        "up\nbye\n"
    ] * 4


async def test_a_part_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    async with supervised([part(tmp_path, "stubborn", HANG, stop_within=0.3)]) as running:
        ready = await running.told.reached("stubborn", State.READY)
    texts = [event.text for event in running.told.of("stubborn", State.STOPPING)]
    assert texts == ["stopping", "did not stop within 0.3 s: killed"]
    assert ready.pid
    assert not psutil.pid_exists(ready.pid)


async def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    waves = [[part(tmp_path, name, HANG, stop_within=60.0)] for name in ("a", "b", "c")]
    async with supervised(*waves) as running:
        pids = [(await running.told.reached(name, State.READY)).pid for name in ("a", "b", "c")]
        running.stop.set()
        await running.told.reached("a", State.STOPPING)
        began = time.monotonic()
        running.at_once.set()
    assert time.monotonic() - began < 5.0
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)


async def test_what_a_part_started_goes_with_it(tmp_path: Path) -> None:
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {HANG!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid)
{SERVE}
"""
    async with supervised([part(tmp_path, "parent", code)]) as running:
        ready = await running.told.reached("parent", State.READY)
        grandchild = psutil.Process(int((tmp_path / "parent.log").read_text().split()[0]))
        assert is_alive(grandchild)
        assert ready.pid
        os.kill(ready.pid, signal.SIGKILL)
        await running.told.reached("parent", State.DIED)
        async with asyncio.timeout(DEADLINE_S):
            while is_alive(grandchild):  # noqa: ASYNC110  it is nobody's child any more
                await asyncio.sleep(0.01)


async def test_leftovers_are_removed_before_the_next_start(tmp_path: Path) -> None:
    removed: list[int] = []
    worker = part(tmp_path, "worker", leftovers=removed.append)
    async with supervised([worker]) as running:
        first = await running.told.reached("worker", State.READY)
        assert first.pid
        os.kill(first.pid, signal.SIGKILL)
        await running.told.reached("worker", State.STARTING, 2)
        assert removed == [first.pid]
        second = await running.told.reached("worker", State.READY, 2)
    assert removed == [first.pid, second.pid]


async def test_a_part_that_ends_at_the_start_fails_the_stack_and_says_why(tmp_path: Path) -> None:
    running = Running()
    broken = part(tmp_path, "broken", "raise SystemExit('no such database')")
    other = part(tmp_path, "other")
    supervisor = Supervisor([[broken], [other]], running.told, QUICK)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(PartFailed) as caught:
            await supervisor.run(running.stop, running.at_once, running.up.set)
    assert "broken ended by itself with status 1" in str(caught.value)
    assert "  no such database" in str(caught.value)
    assert not running.up.is_set()
    assert running.told.of("other", State.STOPPED)


async def test_a_part_that_is_not_ready_in_time_is_killed(tmp_path: Path) -> None:
    running = Running()
    slow = part(tmp_path, "slow", HANG, says="never said", start_within=0.5)
    with pytest.raises(PartFailed, match=r"slow was not ready within 0\.5 s and was killed"):
        await Supervisor([[slow]], running.told, QUICK).run(
            running.stop, running.at_once, running.up.set
        )


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    running = Running()
    absent = Part(
        name="absent",
        command=("/nowhere/tritonserver",),
        environment={},
        log=tmp_path / "absent.log",
        ready=asyncio.Event().wait,  # type: ignore[arg-type]
    )
    with pytest.raises(PartFailed, match="/nowhere/tritonserver cannot be started: No such file"):
        await Supervisor([[absent]], running.told, QUICK).run(
            running.stop, running.at_once, running.up.set
        )


async def test_a_process_that_the_system_refuses(tmp_path: Path) -> None:
    running = Running()
    refused = dataclasses.replace(part(tmp_path, "refused"), environment={"X": "x" * 1_000_000})
    with pytest.raises(PartFailed, match=r"refused could not be started \(Argument list too long"):
        await Supervisor([[refused]], running.told, QUICK).run(
            running.stop, running.at_once, running.up.set
        )


async def test_a_stop_during_the_start(tmp_path: Path) -> None:
    running = Running()
    never = part(tmp_path, "never", says="never said")
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        supervisor = Supervisor([[never]], running.told, QUICK)
        tasks.create_task(supervisor.run(running.stop, running.at_once, running.up.set))
        await running.told.reached("never", State.STARTING)
        running.stop.set()
    assert not running.up.is_set()
    assert running.told.of("never", State.STOPPED)


async def test_parts_are_out_of_reach_of_the_terminal(tmp_path: Path) -> None:
    async with supervised([part(tmp_path, "worker")]) as running:
        ready = await running.told.reached("worker", State.READY)
        assert ready.pid
        assert os.getsid(ready.pid) == ready.pid != os.getsid(0)


SUPERVISE = """
import asyncio, sys
from pathlib import Path
from services.embedded.part import State
from services.embedded.supervisor import Supervisor
from tests.support.embedded_children import HANG, part

def report(event):
    if event.state is State.READY:
        print(event.pid, flush=True)

worker = part(Path(sys.argv[1]), "worker", HANG)
never = asyncio.Event()
asyncio.run(Supervisor([[worker]], report).run(never, never, lambda: None))
"""


def test_parts_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as supervisor:
        assert supervisor.stdout
        worker = psutil.Process(int(supervisor.stdout.readline()))
        assert is_alive(worker)
        supervisor.kill()
    deadline = time.monotonic() + DEADLINE_S
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(worker)
