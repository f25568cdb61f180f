"""`python -m bench`: what is adapted, what it costs, what changed, from the command line.

Exit status: 0 all holds, 1 a check failed, 2 the input was wrong.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from bench.cli.parser import make_parser
from bench.errors import BenchError, missing_extra
from bench.models.quantization import quiet_bitsandbytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Wrong input is one line on standard error."""
    options = make_parser().parse_args(arguments)
    quiet_bitsandbytes()
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BenchError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if not (line := missing_extra(error)):
            raise
        print(f"bench: error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader went away: `bench ... | head`
        _discard_output()
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _discard_output()
        print(f"bench: error: the output was not written: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _discard_output() -> None:
    """What is still in the buffer would fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
