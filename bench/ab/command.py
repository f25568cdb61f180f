"""`bench ab`: what an upgrade changed, measured in two environments side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.ab.environments import Environment, find_python
from bench.ab.measure import Plan, measure
from bench.ab.rounds import CLOCKS
from bench.baselines import (
    METRICS,
    VERDICTS,
    Run,
    Verdict,
    all_thresholds,
    as_json,
    compare,
    gate,
    write_run,
    write_verdicts,
)
from bench.baselines.explain import version_changes
from bench.errors import UnknownName
from bench.reports.commands import write_report
from bench.reports.layout import BAD, EMPTY, GOOD, Report, Table
from bench.reports.verdicts import verdict_report
from bench.units import format_bytes, format_change, format_seconds

FORMATS = ("terminal", "markdown", "latex", "json")


def ab_command(
    baseline_env: str,
    contender_env: str,
    plan: Plan,
    *,
    clock: str = "processor",
    thresholds: Iterable[str] = (),
    allow: Iterable[str] = (),
    verdict_file: str | Path | None = None,
    save: str | Path | None = None,
    format: str = "terminal",
) -> int:
    """Measure the plan in both environments and print the verdicts; 1 if any fails, else 0.

    thresholds, allow, verdict_file, format: as `compare_command` takes them. clock: of steps on a
    CPU, "processor" or "wall". save: a folder to store both runs in. BenchError for an environment
    that cannot be used and for whatever else of the input is wrong.
    """
    for kind, name, known in (("format", format, FORMATS), ("clock", clock, CLOCKS)):
        if name not in known:
            raise UnknownName(kind, name, known)
    limits = all_thresholds(thresholds)
    allow = tuple(allow)
    gate([], allow)
    options = ("--baseline-env", "--contender-env")
    with ExitStack() as stack:
        baseline, contender = (
            stack.enter_context(Environment(python, option, environment, CLOCKS[clock]))
            for option, environment, python in [
                (option, environment, find_python(environment, option))
                for option, environment in zip(options, (baseline_env, contender_env), strict=True)
            ]
        )
        pair = measure(baseline, contender, plan, _say)
    if save is not None:
        for name, document in zip(("baseline", "contender"), pair.documents, strict=True):
            _say(f"stored {write_run(save, name, document)}")
    before, after = pair.runs
    verdicts = compare(before, after, limits)
    failing = gate(verdicts, allow)
    if verdict_file is not None:
        write_verdicts(verdict_file, verdicts, failing, before, after)
    if format == "json":
        for verdict in verdicts:
            print(json.dumps({**as_json(verdict), "fails": verdict in failing}))
    else:
        write_report(ab_report(verdicts, failing, before, after), format)
    return 1 if failing else 0


def ab_report(
    verdicts: list[Verdict], failing: list[Verdict], baseline: Run, contender: Run
) -> Report:
    """What the upgrade is, what it changed, and every case's time and memory on both sides."""
    report = verdict_report(verdicts, failing, baseline, contender)
    versions = "; ".join(version_changes(baseline, contender)) or "no library: the same versions"
    return replace(
        report,
        title="Side by side",
        caption=(f"What differs: {versions}.", *report.caption),
        tables=(*report.tables, _case_table(verdicts, baseline, contender)),
        notes=report.notes[:-1] if failing else report.notes,  # there is no baseline to renew
    )


def _case_table(verdicts: list[Verdict], baseline: Run, contender: Run) -> Table:
    rows, styles = [], []
    for key in dict.fromkeys((*baseline.records, *contender.records)):
        mine = [each for each in verdicts if each.record == key]
        named = {each.metric: each for each in mine}
        worst = min((each.verdict for each in mine), key=VERDICTS.index, default="unchanged")
        step, peak = named.get("step_seconds"), named.get("peak_allocated_bytes")
        rows.append((key, *_cells(step), *_cells(peak), worst))
        failed = worst in ("regressed", "changed", "vanished", "incomparable")
        styles.append(BAD if failed else GOOD if worst == "improved" else "")
    figures = ("step before", "step after", "peak before", "peak after")
    header = ("case", *figures[:2], "change of step", *figures[2:], "change of peak", "verdict")
    return Table("Every case", header, tuple(rows), 1, frozenset(figures), tuple(styles))


def _cells(verdict: Verdict | None) -> tuple[str, str, str]:
    if verdict is None:
        return (EMPTY, EMPTY, EMPTY)
    unit = METRICS[verdict.metric].unit

    def figure(value: object) -> str:
        if not isinstance(value, int | float):
            return EMPTY
        return format_seconds(value) if unit == "seconds" else format_bytes(value)

    change = EMPTY if verdict.ratio is None else format_change(verdict.ratio)
    if verdict.interval:
        change += " ({} to {})".format(*map(format_change, verdict.interval))
    return figure(verdict.baseline), figure(verdict.contender), change


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
