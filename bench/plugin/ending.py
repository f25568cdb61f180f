"""Whether a run came to its end, or was cut short."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest

from bench.plugin.state import ENDED, LOG, MEASURED, under_xdist
from bench.process import held


def until_the_end(config: pytest.Config, within: AbstractContextManager[object]) -> None:
    """Enter it from here to where pytest takes its configuration apart."""
    ending = ExitStack()
    ending.enter_context(within)
    config.add_cleanup(ending.close)


def is_whole(session: pytest.Session) -> bool:
    """Whether every test that was chosen came to its end. pytest's own status tells it only of what
    pytest ended: not where a plugin ends the run with status 0, or a second signal comes before
    pytest has taken note of the first."""
    # Collecting came to its end; under xdist, where nothing is stored, it is elsewhere.
    chosen = MEASURED in session.config.stash or under_xdist(session.config)
    stopped = session.exitstatus == pytest.ExitCode.INTERRUPTED
    stopped = stopped or bool(session.shouldfail or session.shouldstop)
    return chosen and not stopped and all(ENDED in item.stash for item in session.items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Take note of each test that comes to its end."""
    taken = yield
    item.stash[ENDED] = True
    return taken


class _Cut:
    """Whether somebody ended the run, by Ctrl-C or a signal; `pytest.exit` ends it too, in words of
    its own. A further signal waits until what is finished is stored."""

    came = False

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.came = isinstance(excinfo.value, KeyboardInterrupt)
        if self.came:
            until_the_end(self.config, held())


@pytest.hookimpl(specname="pytest_cmdline_main", wrapper=True, tryfirst=True)
def pytest_cut_early(config: pytest.Config) -> Generator[None, Any, Any]:
    """Of a run that was ended before it had a case nothing else tells what is kept."""
    cut = _Cut(config)
    config.pluginmanager.register(cut)
    status = yield
    log = config.stash.get(LOG, None)
    if cut.came and not (log and (log.records or log.resumed)):
        said = "interrupted before a case had ended: nothing is kept, and none is to --resume"
        print(said, file=sys.stderr)
    return status
