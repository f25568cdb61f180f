"""`python -m bench`."""

import sys

from bench.cli import command

if __name__ == "__main__":
    sys.exit(command())
