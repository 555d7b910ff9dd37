"""The process that looks into one artifact: its request on stdin, its answer on stdout."""

import resource
import sys

from services.registry.formats.apart import MEMORY, SECONDS, answer


def main() -> None:
    """Answer, with no more memory or time than any model needs, and without writing a file."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.dont_write_bytecode = True
    sys.stdout.buffer.write(answer(sys.stdin.buffer.read()))


if __name__ == "__main__":
    main()
