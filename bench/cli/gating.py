"""One run held against another, by several commands: the options, the verdicts, their file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.options import REPEATABLE, Add
from bench.cli.output import json_lines, say
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.baselines import StoredRun, Verdict


def add_gate(add: Add) -> None:
    """What a verdict tolerates, and where it is written."""
    add("--threshold", **REPEATABLE, metavar="METRIC=X%", help="tolerated change; repeatable")
    add("--allow", **REPEATABLE, metavar="VERDICT[:ID]", help="may pass the gate; repeatable")
    add("--verdict-file", type=Path, metavar="FILE", help="write the verdicts there as JSON")


def check_gate(options: argparse.Namespace) -> None:
    """BenchError, before anything is measured, for what `judge` would refuse of the options."""
    from bench.baselines import all_thresholds, begin_verdict_file, gate

    if options.verdict_file is not None:  # first: an earlier run's "passed" is not this one's
        begin_verdict_file(options.verdict_file)
    all_thresholds(options.threshold)
    gate([], options.allow)


def begin_refused(given: Sequence[str]) -> None:
    """What `check_gate` does first, for a command line that no option can be read of."""
    for one, following in pairwise([*given, ""]):
        option, equals, value = one.partition("=")
        path = value if equals else following
        if path and len(option) > 2 and "--verdict-file".startswith(option):  # as argparse takes it
            from bench.baselines import begin_verdict_file

            with suppress(BenchError, OSError):  # the command line is what is told
                begin_verdict_file(Path(path))


def judge(
    baseline: StoredRun, contender: StoredRun, options: argparse.Namespace
) -> tuple[list[Verdict], list[Verdict]]:
    """The verdicts, and those that fail the gate. The verdict file is written whole or not at all,
    before anything is printed. What a report says besides is said where data alone is printed."""
    from bench.baselines import all_thresholds, compare, gate, require_common, write_verdicts
    from bench.reports.verdicts import beside_data

    verdicts = compare(baseline, contender, all_thresholds(options.threshold))
    require_common(baseline, contender, verdicts)
    failing = gate(verdicts, options.allow)
    if options.verdict_file is not None:
        write_verdicts(options.verdict_file, verdicts, failing, baseline, contender)
    if options.format in ("csv", "json"):
        for line in beside_data(verdicts, baseline, contender, options.allow):
            say(line)
    return verdicts, failing


def verdict_lines(verdicts: Sequence[Verdict], failing: Sequence[Verdict]) -> str:
    """Every verdict as JSON, a line each."""
    from bench.baselines import as_json

    return json_lines({**as_json(item), "fails": item in failing} for item in verdicts)
