"""What one run keeps on pytest's config, and what several hooks ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.baselines import StoredRun, Thresholds, Verdict
from bench.baselines.journal import RunJournal
from bench.baselines.machines import MachineKind
from bench.baselines.runlog import Pace, RunLog
from bench.measure.cluster import Cluster
from bench.plugin.internals import root_of
from bench.scenarios.subjects import Subjects
from bench.training.machine import Machine

LOG = pytest.StashKey[RunLog]()
PROGRESS = pytest.StashKey[Pace]()
SUBJECTS = pytest.StashKey[Subjects]()
RUN = pytest.StashKey[StoredRun]()
REFUSED = pytest.StashKey[int]()
SAVE = pytest.StashKey[str | None]()
BASELINE = pytest.StashKey[StoredRun | None]()
AUTOSAVED = pytest.StashKey[bool]()  # the run has pytest-benchmark's name, not one of the user's
GATE = pytest.StashKey[str | None]()  # how it ended, as bench.baselines.accepted says
FAILING = pytest.StashKey[Sequence[Verdict]]()
BESIDE = pytest.StashKey[str]()  # what the run failed of beside its verdicts
THRESHOLDS = pytest.StashKey[Thresholds]()
VERDICTS = pytest.StashKey[Sequence[Verdict]]()
MEASURED = pytest.StashKey[list[str]]()  # keys of the measured subjects, in the run's order
IS_FIRST = pytest.StashKey[bool]()  # when it began, no run of its folder could be a baseline
JOURNAL = pytest.StashKey[RunJournal | None]()
RESUMED = pytest.StashKey[dict[str, Any]]()  # the document of the run to go on with
CLUSTER = pytest.StashKey[Cluster]()  # with --cluster: where tasks run
KIND = pytest.StashKey[MachineKind]()  # ... and the machine that is measured there
LINES = pytest.StashKey[list[str]]()
ENDED = pytest.StashKey[bool]()  # of an item: it came to its end, whatever that was
WRONG = pytest.StashKey[str]()  # what could not be written at the end, told after the summary

# Fixture name → the subjects that parametrize it.
PARAMETERS: dict[str, Callable[[Subjects], list[str]]] = {
    "architecture": lambda s: list(s.architectures),
    "subject": lambda s: list(s.structural),
    "ranked": lambda s: list(s.ranked),
    "measured": lambda s: list(s.measured),
    "user_subject": lambda s: list(s.own),
}
XDIST_REASON = (
    "measured cases are refused under pytest-xdist: cases that run side by side share caches and "
    "memory bandwidth, so their times would mean nothing. Run them with -n 0, take one step of "
    "each with --benchmark-disable, or leave them out with: -m 'not measured'"
)


def under_xdist(config: pytest.Config) -> bool:
    """Whether this process is one of pytest-xdist's, or is about to start some."""
    return hasattr(config, "workerinput") or bool(getattr(config.option, "numprocesses", None))


def measured_machine(config: pytest.Config) -> Machine:
    """The machine that cases are measured on: this one, or that of the cluster's nodes."""
    from bench.training.machine import machine

    kind = config.stash.get(KIND, None)
    return machine() if kind is None else kind.machine


def on_gpu(config: pytest.Config) -> bool | None:
    """Whether the nodes that are measured on have GPUs; None without a cluster."""
    kind = config.stash.get(KIND, None)
    return None if kind is None else kind.machine.accelerator is not None


def storage_folder(config: pytest.Config) -> Path:
    """The folder of this machine's runs: `results/<machine>` of the project, or as asked for. The
    suites of an installation lie outside of any project: then of the folder pytest started in. One
    that is asked for together with --machine has a folder for each."""
    asked = str(config.option.benchmark_storage)
    kind = config.stash.get(KIND, None)
    if asked != "file://./.benchmarks":
        folder = Path(asked.removeprefix("file://"))
        return folder / kind.name if kind and config.option.machine else folder
    from bench.files import INSTALLED

    project = config.invocation_params.dir if INSTALLED else root_of(config)
    return project / "results" / (kind.name if kind else measured_machine(config).id)


def say(config: pytest.Config, line: str) -> None:
    """Have it told below the verdicts, where the run and its page are."""
    config.stash.setdefault(LINES, []).append(line)
