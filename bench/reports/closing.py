"""The end of `pytest suites/`: what failed the gate, what stands out, and where the rest is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.baselines import StoredRun, Verdict
from bench.baselines.accepted import unproven
from bench.baselines.verdicts import UNCHANGED
from bench.reports.layout import Report, Table, terminal
from bench.reports.rows import comparison_rows
from bench.reports.tables import findings
from bench.reports.verdicts import headline, ranked, verdict_report
from bench.units import counted

MOST_LINES = 40


def closing(
    run: StoredRun,
    baseline: StoredRun | None,
    verdicts: Sequence[Verdict],
    failing: Sequence[Verdict],
    *,
    places: Sequence[str],
    save_command: str,
    allow: Sequence[str] = (),
    failed_beside: str = "",
    most: int = MOST_LINES,
    width: int = 80,
    colour: bool = False,
) -> str:
    """At most `most` lines of text: verdicts (failing first), findings, and `places`, which
    say where the run and its page are and how to see all of it.

    Verdicts that find no room are counted, with the command that prints them.
    """
    found = findings(comparison_rows([run]))
    tail = "\n".join([*(f"- {line}" for line in found), *places]) + "\n" if found or places else ""
    if baseline is None:
        return _cut(tail, most)
    room = most - len(tail.splitlines())
    for rows in range(min(len(verdicts), 30), -1, -1):
        report = _shortened(
            run, baseline, verdicts, failing, save_command=save_command, allow=allow,
            failed_beside=failed_beside, most=rows,
        )  # fmt: skip
        text = terminal(report, width, colour).lstrip()
        if len(text.splitlines()) <= room:
            return text + tail
    told = [f"Baseline: {line}" for line in [unproven(baseline)] if line]
    said = [*told, headline(verdicts, failing, failed_beside), tail]
    return _cut("\n".join(said), most)


def _shortened(
    run: StoredRun,
    baseline: StoredRun,
    verdicts: Sequence[Verdict],
    failing: Sequence[Verdict],
    *,
    save_command: str,
    allow: Sequence[str],
    failed_beside: str,
    most: int,
) -> Report:
    """The verdict report with its first `most` lines, failing ones first, and what was left out."""
    failed = set(failing)
    told = [v for v in ranked(verdicts) if v.verdict != UNCHANGED]
    ordered = [v for v in told if v in failed] + [v for v in told if v not in failed]
    unchanged = [v for v in verdicts if v.verdict == UNCHANGED]
    how = "" if run.path else "of a run that is stored (--benchmark-save=NAME) "
    whole = verdict_report(
        [*ordered, *unchanged], failing, baseline, run, save_command=save_command, allow=allow,
        failed_beside=failed_beside, whole=f"{how}bench compare",
    )  # fmt: skip
    if not whole.tables or len(whole.tables[0].rows) <= most:
        return replace(whole, title="")
    table: Table = whole.tables[0]
    short = replace(table, rows=table.rows[:most], styles=table.styles[:most])
    left = counted(len(table.rows) - most, "more line")
    more = f"{left}: {how}bench compare prints them all."
    return replace(whole, title="", tables=(short,) if most else (), notes=(more, *whole.notes))


def _cut(text: str, most: int) -> str:
    lines = text.splitlines()
    if len(lines) <= most:
        return text
    return "\n".join([*lines[: most - 1], f"... {len(lines) - most + 1} more lines"]) + "\n"
