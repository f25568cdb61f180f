"""What a run that is cut short leaves behind, and how the next one goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.baselines import KEY, parse_run
from bench.baselines.accepted import is_first
from bench.baselines.configuration import others
from bench.baselines.differences import version_changes
from bench.baselines.journal import RunJournal, unfinished
from bench.baselines.machines import other_machine
from bench.baselines.runs import FAILURES, StoredRun
from bench.errors import BenchError
from bench.plugin.state import IS_FIRST, JOURNAL, LOG, RESUMED, SAVE, storage_folder
from bench.training.options import step_from
from bench.units import counted

_MEASURED_BY = ("rounds", "check_loss", "memory_limit", "time_limit", "weights", "full_geometry")


def options_of(config: pytest.Config) -> dict[str, Any]:
    """What decides how a case is measured, to be held against that of the run to go on with."""
    option = config.option
    step = step_from(option).recorded()
    return {**step, **{name: _plain(getattr(option, name)) for name in _MEASURED_BY}}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def open_journal(config: pytest.Config) -> None:
    """Before anything runs: is the folder there for us, and what did a killed run leave in it?"""
    name = config.stash[SAVE]
    if name is None:
        return
    config.stash[JOURNAL] = journal = RunJournal(storage_folder(config), name)
    config.add_cleanup(lambda: journal.close(done=False))
    config.stash[IS_FIRST] = is_first(storage_folder(config))
    if config.option.resume:
        config.stash[RESUMED] = unfinished(storage_folder(config), name)


def begin(config: pytest.Config, document: dict[str, Any]) -> None:
    """Write down what this run is; with --resume, refuse to mix it with another's cases."""
    resumed = config.stash[RESUMED]
    if resumed:
        now = parse_run(document, "this run")
        before = parse_run(_sealed(resumed), "the run to resume")
        check_same(before, now)
    journal = config.stash[JOURNAL]
    if journal is not None:
        journal.begin(document)
        timed = resumed.get("benchmarks", [])
        for key, record in finished(config).items():
            journal.add(key, record, [each for each in timed if each["fullname"] == key])


def _sealed(resumed: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in resumed.items() if key != "path"}


def check_same(before: StoredRun, now: StoredRun) -> None:
    """BenchError, naming what differs, unless the cases of both runs can stand side by side."""
    differing = version_changes(before, now)
    if machine := other_machine(before.machine, now.machine):
        differing.append(machine)
    differing += [
        f"--{name.replace('_', '-')} {before.options.get(name)} -> {now.options.get(name)}"
        for name in now.options
        if before.options.get(name) != now.options.get(name)
    ]
    differing += others(vars(before), vars(now))
    if any(r.precision for r in before.records.values()) and not before.subjects:
        differing.append("it does not say what its models and adapters were")
    if differing:
        raise BenchError(
            f"--resume: the run to go on with was another: {'; '.join(differing)}. Its cases "
            "cannot stand beside these; leave out --resume"
        )


def finished(config: pytest.Config) -> dict[str, dict[str, Any]]:
    """The cases of the run to go on with that are not measured again. What is not measured is
    looked at anew: it takes no time, and what it holds against may be other files by now; and a
    case that failed has to fail before somebody's eyes."""
    resumed = config.stash[RESUMED]
    records = resumed[KEY]["records"] if resumed else {}
    return {
        key: record
        for key, record in records.items()
        if record["outcome"] not in FAILURES and record["precision"] is not None
    }


def leave_out_finished(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what the run to go on with has done."""
    done = finished(config)
    left_out = [item for item in items if item.nodeid in done]
    if left_out:
        items[:] = [item for item in items if item.nodeid not in done]
        config.hook.pytest_deselected(items=left_out)
    elif done:
        before = Path(config.stash[RESUMED]["path"]).stem
        raise BenchError(
            f"--resume: {before} has {counted(len(done), 'measured case')}, and none is asked for "
            "here: give the model and the options that it had, or another name without --resume"
        )
    asked = {item.nodeid for item in left_out}
    log = config.stash[LOG]
    log.resumed = {key: record for key, record in done.items() if key in asked}
    log.deselected = [key for key in log.deselected if key not in asked]
