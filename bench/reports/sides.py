"""The report of two environments measured side by side: what an upgrade changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.baselines import FAILING, METRICS, VERDICTS, StoredRun, Verdict
from bench.baselines.differences import version_changes
from bench.reports.layout import BAD, EMPTY, GOOD, Report, Table
from bench.reports.verdicts import verdict_report
from bench.units import format_bytes, format_change, format_seconds


def sides_report(
    verdicts: list[Verdict],
    failing: list[Verdict],
    baseline: StoredRun,
    contender: StoredRun,
    allow: Sequence[str] = (),
) -> Report:
    """What the upgrade is, what it changed, and every case's time and memory on both sides."""
    report = verdict_report(verdicts, failing, baseline, contender, allow=allow)
    versions = "; ".join(version_changes(baseline, contender)) or "no library: the same versions"
    return replace(
        report,
        title="Side by side",
        caption=(f"What differs: {versions}.", *report.caption),
        tables=(*report.tables, _case_table(verdicts, baseline, contender)),
        notes=report.notes[:-1] if failing else report.notes,  # there is no baseline to renew
    )


def _case_table(verdicts: list[Verdict], baseline: StoredRun, contender: StoredRun) -> Table:
    rows, styles = [], []
    for key in dict.fromkeys((*baseline.records, *contender.records)):
        mine = [each for each in verdicts if each.record == key]
        named = {each.metric: each for each in mine}
        worst = min((each.verdict for each in mine), key=VERDICTS.index, default="unchanged")
        step, peak = named.get("step_seconds"), named.get("peak_allocated_bytes")
        rows.append((key, *_cells(step), *_cells(peak), worst))
        failed = worst in FAILING
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
