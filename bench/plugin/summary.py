"""The end of a run on the screen: forty lines at most, whatever happened."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from typing import Any

import pytest

from bench.baselines.storage import named
from bench.errors import unimportable
from bench.plugin.internals import width_of
from bench.plugin.state import BASELINE, BESIDE, FAILING, LINES, LOG, RUN, SAVE, VERDICTS, WRONG
from bench.plugin.storing import save_command
from bench.process import held
from bench.units import harmless, one_line

MOST_DEAD = 5
"""So many dead entries of one's own are told here; each failed its test at length."""


@pytest.hookimpl(specname="pytest_sessionfinish", wrapper=True, tryfirst=True)
def pytest_last_word(session: pytest.Session) -> Generator[None]:
    """What could not be written, once all that was found out is on the screen: status 2. A run
    whose last test has ended is stored and told whole, whatever signal comes meanwhile."""
    with held() as came:
        yield
    if came:
        session.exitstatus = pytest.ExitCode.INTERRUPTED
        name = signal.Signals(came[0]).name
        print(f"{name} came after the last test: nothing is cut short", file=sys.stderr)
    if session.exitstatus == pytest.ExitCode.INTERNAL_ERROR:  # pytest then has no summary
        for line in session.config.stash.get(LINES, []):
            print(line, file=sys.stderr)
    if text := session.config.stash.get(WRONG, None):
        pytest.exit(text, returncode=2)


@pytest.hookimpl(tryfirst=True)
def pytest_internalerror(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """A library that cannot be imported is one line, and no traceback of pytest's own."""
    if line := unimportable(excinfo.value):
        # Not 2: that is a run which somebody stopped, of which pytest would tell where.
        pytest.exit(harmless(f"error: {line}"), returncode=pytest.ExitCode.INTERNAL_ERROR)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Dead entries in red, then verdicts, findings, and where the run and its page are."""
    dead = _dead_entries(config)
    for line in dead:
        terminalreporter.write_line(line, red=True)
    run = config.stash.get(RUN, None)
    if run is None:
        return
    from bench.reports.closing import MOST_LINES, closing

    baseline, failing = config.stash[BASELINE], config.stash[FAILING]
    measured = any(record.suite == "measurement" for record in run.records.values())
    places = [*config.stash.get(LINES, [])]
    if measured and not (config.stash[SAVE] and WRONG in config.stash and run.path is None):
        stored = named(run.path) if config.stash[SAVE] and run.path else None
        places.append(
            f"every case: bench report {stored}"
            if stored
            else "not stored: --benchmark-save=NAME keeps a run, for bench report and comparisons"
        )
    if baseline is None and not measured and not places:
        return
    title = "scenarios × precisions" if measured else "stored run"
    if baseline is not None:
        title = f"verdicts against {baseline.name}"
    terminalreporter.section(title)
    text = closing(
        run, baseline, config.stash[VERDICTS], failing,
        places=places, save_command=save_command(config), allow=config.option.allow,
        failed_beside=config.stash.get(BESIDE, ""),
        most=MOST_LINES - 1 - len(dead), width=width_of(terminalreporter),
        colour=terminalreporter.hasmarkup,
    )  # fmt: skip
    terminalreporter.write(text)
    if failing and config.option.gate:
        # pytest's last line counts what it knows: say there that the tests are not all.
        one = len(failing) == 1
        terminalreporter.stats[f"{'verdict' if one else 'verdicts'} failed the gate"] = failing


def _dead_entries(config: pytest.Config) -> list[str]:
    own = [r for r in config.stash[LOG].records.values() if r.subject.scenario is None or
           r.subject.model.architecture is None]  # fmt: skip
    found = [
        f"dead entry: {one_line(entry)} reaches nothing on {recorder.subject.model.label}"
        for recorder in own
        for entry in recorder.detail.get("dead_entries", ())
    ]
    if len(found) <= MOST_DEAD:
        return found
    return [*found[: MOST_DEAD - 1], f"{len(found) - MOST_DEAD + 1} more dead entries"]
