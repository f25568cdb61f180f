"""`python -m bench`: what is adapted, what it costs, what changed, from the command line.

Exit status: 0 all holds, 1 a check failed, 2 the input was wrong. It is the same whether anybody
reads what is printed to its end or not.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence

from bench.cli.gating import begin_refused
from bench.cli.output import Output, answers, harmless_output, hidden_warnings
from bench.cli.parser import make_parser
from bench.compat import spare_the_compiler
from bench.errors import BenchError, missing_extra, unimportable
from bench.models.apart import run_apart, say_status, worker_pipe
from bench.process import as_interrupts, collect_seldom, to_its_end
from bench.units import harmless_line


def command() -> int:
    """`main` in a process that is there for it alone, with the arguments it was started with."""
    collect_seldom()
    spare_the_compiler()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Wrong input is one line on standard error."""
    pipe = worker_pipe()
    whole = to_its_end() if pipe is None else contextlib.nullcontext()  # or the pipe says it
    with harmless_output(apart=pipe is not None), whole, as_interrupts() as came:
        try:
            with hidden_warnings():
                status = _main(arguments, in_worker=pipe is not None)
        except BaseException:  # what a signal cut may be left in any state
            if not came:
                raise
            status = 128 + came[0]
    if pipe is not None:
        say_status(pipe, status)
    return status


def _main(arguments: Sequence[str] | None, *, in_worker: bool) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parsed(given)
        if getattr(options, "trust_remote_code", False) and not in_worker:
            return run_apart("lora_target_bench", given)
        try:
            os.getcwd()
        except FileNotFoundError:  # torch would end the process in its own words
            return _refuse("the current folder is no longer there: go to another one")
        status: int = options.run(options)
        answers().flush()
        return status
    except BenchError as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        if not (line := missing_extra(error) or unimportable(error)):
            raise
        return _refuse(line)
    except (AttributeError, ImportError) as error:
        from bench.compat import what_moved

        if not (lines := what_moved(error) or unimportable(error)):
            raise
        return _refuse(lines)
    except OSError as error:
        if error.errno in _NAMED and error.filename is not None:
            named = str(error.filename)
            shown = named if len(named) <= 200 else f"{named[:80]}..."
            return _refuse(f"{harmless_line(shown)}: {error.strerror}")
        if error.errno not in _UNWRITTEN:
            if not (line := unimportable(error)):
                raise
            return _refuse(line)
        _discard_output()
        return _refuse(f"the output was not written: {error.strerror}")
    except (Exception, SystemExit) as error:  # whatever a library raises where it is imported
        if not (line := unimportable(error)):
            raise
        return _refuse(line)
    except KeyboardInterrupt as stopped:  # as a shell has it: 128 and the signal
        return 128 + getattr(signal, str(stopped) or "SIGINT", signal.SIGINT)


def _parsed(given: Sequence[str]) -> argparse.Namespace:
    try:
        return make_parser().parse_args(given)
    except SystemExit as refused:
        if refused.code:
            begin_refused(given)
        raise


_NAMED = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
"""What is wrong with a path that somebody named."""
_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EPIPE)
"""Why what was written is lost. EPIPE is no reader's of ours, without whom `Output` goes on."""


def _refuse(line: str) -> int:
    with contextlib.suppress(BenchError, OSError):  # where standard error is closed too
        print(f"bench: error: {line}", file=sys.stderr)
    return 2


def _discard_output() -> None:
    if isinstance(out := answers(), Output):
        out.discard()
