"""`python -m bench.starts`: how soon a part of a stack is back after it was killed."""

import argparse
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil
import tritonclient.grpc as triton

from bench import machine
from services.embedded.background import BackgroundStack

PARTS: Final = ("registry", "controller", "router")
EXAMPLES: Final = Path(__file__).resolve().parents[1] / "model_repository"
MODEL: Final = "multiplier"
LIVED: Final = 5.5  # seconds after which a part that dies is started again at once
WITHIN: Final = 60.0


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.starts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="kills of each part")
    given = parser.parse_args(words)
    print(f"load average before: {machine.load_average():.1f}")
    print("| part | s until it serves | slowest | CPU s |\n| --- | ---: | ---: | ---: |")
    with BackgroundStack(f"--repository={EXAMPLES}", "--trace-ratio=0") as stack:
        # A server without models is checked anew by each Controller, with a load.
        triton.InferenceServerClient(stack.router_grpc).load_model(MODEL)
        for part in PARTS:
            found = [killed(stack, part) for _ in range(given.rounds)]
            seconds, cpu = zip(*found, strict=True)
            middle = statistics.median(seconds)
            print(f"| {part} | {middle:.2f} | {max(seconds):.2f} | {statistics.median(cpu):.2f} |")
    return 0


def killed(stack: BackgroundStack, part: str) -> tuple[float, float]:
    """Kill a part that has lived for long enough. Returns the seconds until its successor serves,
    and those of CPU that this took."""
    time.sleep(LIVED)
    before = stack.announced()
    began = time.monotonic()
    os.kill(before.pid_of(part), signal.SIGKILL)
    after = stack.wait_for(
        lambda now: now.all_ready() and now.starts(part) > before.starts(part), WITHIN
    )
    seconds = time.monotonic() - began
    used = psutil.Process(after.pid_of(part)).cpu_times()
    return seconds, used.user + used.system


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
