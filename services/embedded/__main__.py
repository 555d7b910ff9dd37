"""`python -m services.embedded` is `shoal up`."""

import sys

from shoal.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["up", *sys.argv[1:]]))
