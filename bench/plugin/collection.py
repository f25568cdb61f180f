"""Which tests a run takes, and the line that tells how each measured case went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.baselines import seal
from bench.baselines.configuration import decided
from bench.baselines.runlog import Pace
from bench.compat import rename
from bench.errors import BenchError
from bench.files import SUITES
from bench.plugin.internals import rewrite_line, root_of, width_of
from bench.plugin.resuming import begin, leave_out_finished
from bench.plugin.state import (
    CLUSTER,
    KIND,
    LOG,
    MEASURED,
    PARAMETERS,
    PROGRESS,
    REFUSED,
    SAVE,
    SUBJECTS,
    XDIST_REASON,
    under_xdist,
)
from bench.plugin.storing import run_document
from bench.training.options import step_from
from bench.units import harmless, reading_text


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each subject, called by its key."""
    subjects = metafunc.config.stash[SUBJECTS]
    for name, keys in PARAMETERS.items():
        if name in metafunc.fixturenames:
            named = keys(subjects)  # of long ones pytest's own ids would be numbers
            metafunc.parametrize(name, named, indirect=name != "architecture", ids=named)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The tool's own tests are left out where pytest_collection_modifyitems would drop them all."""
    about_results = config.option.model or _stores(config)
    selftest = collection_path.name == "selftest" and _of_suites(config, collection_path)
    return True if selftest and about_results else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for: with --model what is about no model, in a stored or
    compared run what records nothing. Under xdist refuse the cases that would be timed, aloud."""
    keep, dropped = [], []
    refused: list[pytest.Item] = []
    slow_too = "slow" in config.option.markexpr
    wanted = set(PARAMETERS) if config.option.model else {"record"}
    about_results = config.option.model or _stores(config)
    timed_together = under_xdist(config) and not config.option.benchmark_disable
    for item in items:
        if not _of_suites(config, item.path) and "record" not in _fixtures(item):
            keep.append(item)  # somebody else's: not ours to choose among
            continue
        empty = "[NOTSET" in item.name  # a suite with no subject in this run
        other = about_results and not wanted & set(_fixtures(item))
        slow = item.get_closest_marker("slow") and not slow_too
        if empty or other or slow:
            dropped.append(item)
        elif _is_measured(item) and timed_together:
            refused.append(item)
        else:
            keep.append(item)
    if refused:
        # One failure says it for all of them.
        refused[0].stash[REFUSED] = len(refused)
        keep.append(refused[0])
        dropped += refused[1:]
    items[:] = keep
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    try:
        leave_out_finished(config, items)
    except BenchError as error:
        config.stash[SAVE] = None  # collecting goes on to its end, and nothing is begun there
        pytest.exit(harmless(f"error: {error}"), returncode=2)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is to be measured, now that -k and -m have chosen too; refuse sequences that a model
    has no positions for before anything is."""
    config = session.config
    measured = [item for item in session.items if _is_measured(item)]
    config.stash[PROGRESS] = Pace(len(measured))
    config.stash[MEASURED] = keys = [
        str(item.callspec.params["measured"])
        for item in measured
        if isinstance(item, pytest.Function) and "measured" in item.fixturenames
    ]
    if config.option.collectonly or under_xdist(config):
        return
    if config.stash[SAVE] and keys and config.option.benchmark_disable:
        pytest.exit(
            "error: --benchmark-disable takes one step of each measured case: nothing to store. "
            "Leave out --benchmark-save, or the measured cases (-m 'not measured')",
            returncode=2,
        )
    subjects = config.stash[SUBJECTS].measured
    step = step_from(config.option)
    one_of_each = {subjects[key].model.label: subjects[key] for key in keys}
    try:
        cases = [subject.case(step) for subject in one_of_each.values()]
    except BenchError as error:
        pytest.exit(harmless(f"error: {error}"), returncode=2)
    for case in cases:
        from bench.training.limits import check_case_length

        try:
            check_case_length(case)
        except BenchError as error:
            pytest.exit(harmless(f"error: --seq-len: {error}"), returncode=2)
    if keys and (cluster := config.stash.get(CLUSTER, None)) is not None:
        from bench.measure.folders import require_same

        try:
            require_same(cluster, config.stash[KIND].nodes, [subjects[k].case(step) for k in keys])
        except BenchError as error:
            config.stash[LOG].resumed = {}
            pytest.exit(harmless(f"error: {error}"), returncode=2)
    if _stores(config):  # a run that is compared is held against what the baseline was about
        try:
            config.stash[LOG].subjects = decided(subjects, _reads(config))["subjects"]
            if config.stash[SAVE]:
                begin(config, seal(run_document(config)))
        except BenchError as error:
            config.stash[LOG].resumed = {}  # it goes on with nothing, and stores nothing
            pytest.exit(harmless(f"error: {error}"), returncode=2)


def _reads(config: pytest.Config) -> Callable[[int, int], None]:
    """Tells on a terminal how much of the weights is read, in a line that is gone at the end."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")

    def told(done: int, of: int) -> None:
        if reporter is None or not reporter.isatty:
            return
        rewrite_line(reporter, reading_text(done, of)[: width_of(reporter) - 1])

    return told


def _of_suites(config: pytest.Config, path: Path) -> bool:
    """Whether the path lies in the suites: those of the folder that pytest runs in, or our own."""
    return any(path.is_relative_to(suites) for suites in (root_of(config) / "suites", SUITES))


def _is_measured(item: pytest.Item) -> bool:
    return item.get_closest_marker("measured") is not None


def _stores(config: pytest.Config) -> bool:
    """Whether the run is stored or compared: then only tests that record something matter."""
    return bool(config.stash[SAVE] or config.option.benchmark_compare)


def _fixtures(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


def pytest_deselected(items: list[pytest.Item]) -> None:
    """A test that would have recorded something, and was left out, did not vanish."""
    recording = [item for item in items if "record" in _fixtures(item)]
    if recording:
        recording[0].config.stash[LOG].deselected += [item.nodeid for item in recording]


def pytest_itemcollected(item: pytest.Item) -> None:
    """A case has the id that it has in the project, wherever the suites are installed and however
    they were named: stored runs know it by that."""
    if item.path.is_relative_to(SUITES):
        place = item.path.relative_to(SUITES).as_posix()
        rename(item, f"suites/{place}::{item.nodeid.partition('::')[2]}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse to time measured cases under xdist; start none that would end beyond the budget."""
    if refused := item.stash.get(REFUSED, 0):
        pytest.fail(f"{refused} cases: {XDIST_REASON}", pytrace=False)
    if not _is_measured(item):
        return
    progress = item.config.stash[PROGRESS]
    progress.start()
    minutes = item.config.option.budget
    if minutes and progress.elapsed + progress.per_case > 60 * minutes:
        item.config.stash[LOG].deselected.append(item.nodeid)
        pytest.skip(f"left out: beyond --budget {minutes:g} minutes")


LOGGED = 10
"""So many measured cases are one line of a log."""


def pytest_report_teststatus(
    report: pytest.TestReport, config: pytest.Config
) -> tuple[str, str, str] | None:
    """What a measured case took, and how long the rest may take: on a terminal in one line that is
    rewritten, in a log every tenth case, and every one that did not end well."""
    recorder = config.stash[LOG].records.get(report.nodeid)
    if recorder is None or report.when != "call" or recorder.subject.precision is None:
        return None
    if config.option.benchmark_disable or report.failed:
        return None
    progress = config.stash[PROGRESS]
    progress.done += 1
    line = f"[{progress.done}/{progress.total}] {recorder.summary()}; {progress.left()}"
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    last = progress.done == progress.total
    if reporter is not None and reporter.isatty:
        rewrite_line(reporter, line[: width_of(reporter) - 1] + ("\n" if last else ""))
        line = ""
    elif last or progress.done % LOGGED == 0 or recorder.outcome != "ok":
        line += "\n"
    else:
        line = ""
    return ("xfailed" if hasattr(report, "wasxfail") else "passed"), line, "PASSED"
