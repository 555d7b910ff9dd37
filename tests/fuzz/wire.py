"""Fuzzing of the Router's wire walk with atheris: `python -m tests.fuzz.wire --seconds 60`.

Ends with status 0 after that time. A message on which the walk and protobuf disagree ends it at
once, and is left in the folder `--keep` for `python -m tests.fuzz.wire FILE`.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["shoal.protobuf", "services.router.core.wire.request"]):
    from tests.fuzz import oracle, seeds

LONGEST = 512  # bytes of a message; longer ones only repeat what there is


class Disagreement(Exception):
    pass


def one(message: bytes) -> None:
    if found := oracle.disagreement(message):
        raise Disagreement(f"{found}: {message!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="messages to try, instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--keep", type=Path, default=Path(), help="folder for what was found")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-fuzz-") as corpus:
        for number, message in enumerate(seeds.messages()):
            Path(corpus, str(number)).write_bytes(message)
        options = [
            f"-max_total_time={given.seconds}",
            f"-max_len={LONGEST}",
            f"-seed={given.seed}",
            f"-artifact_prefix={given.keep}/",
            "-print_final_stats=1",
        ]
        sys.exit(fuzz(given.files or [*options, corpus]))


def fuzz(arguments: list[str]) -> int:
    """The exit status. It has a process of its own: libFuzzer ends the one that it is in."""
    child = os.fork()
    if not child:
        atheris.Setup([sys.argv[0], *arguments], one)
        atheris.Fuzz()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
