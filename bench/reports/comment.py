"""Verdicts as a comment on a pull request: short, what fails first, the rest folded."""

from __future__ import annotations

from collections.abc import Sequence

from bench.baselines import FAILING, StoredRun, Verdict
from bench.baselines.accepted import unproven
from bench.baselines.verdicts import UNCHANGED
from bench.reports.layout import Report, Table, markdown_cell, markdown_table
from bench.reports.otherwise import unseen_line
from bench.reports.tables import describe
from bench.reports.verdicts import ranked, summary, verdict_report
from bench.units import counted, one_line

MARKER = "<!-- lora-target-bench: verdicts -->"
"""The first line: by it the next comment is an edit of this one, and no second comment."""

VISIBLE_LINES = 59
_MOST_FAILING, _MOST_OTHERS = 20, 8


def comment(
    verdicts: Sequence[Verdict],
    failing: Sequence[Verdict],
    baseline: StoredRun,
    contender: StoredRun,
    allowed: Sequence[str] = (),
) -> str:
    """GitHub's Markdown in at most 59 lines. allowed: the allowances that were given, each as
    VERDICT[:ID], which are recorded with what they let pass."""
    mark = "❌ LoRA targets: the gate fails" if failing else "✅ LoRA targets: the gate passes"
    lines = [MARKER, f"### {mark}", "", summary(verdicts), ""]
    if told := unproven(baseline):
        lines += [f"**Baseline**: {_text(told)}", ""]
    for line in unseen_line(baseline, contender, verdicts, "bench compare"):
        lines += [_text(line), ""]
    others = [v for v in ranked(verdicts) if v.verdict != UNCHANGED and v not in failing]
    if failing:
        lines += _rows(ranked(failing), _MOST_FAILING, failing, baseline, contender)
    if allowed:
        given = ", ".join(f"`{one_line(text).replace('`', '')}`" for text in allowed)
        passed = counted(sum(v.verdict in FAILING for v in others), "verdict")
        lines += [f"**Allowed by name**: {given}, which let {passed} pass.", ""]
    if others:
        lines += [f"<details><summary>{counted(len(others), 'further verdict')}</summary>", ""]
        lines += [*_rows(others, _MOST_OTHERS, failing, baseline, contender), "</details>", ""]
    lines += ["<details><summary>Runs</summary>", ""]
    lines += [f"- {name} {_text(describe(run))}"
              for name, run in (("baseline", baseline), ("contender", contender))]  # fmt: skip
    lines += ["", "</details>"]
    assert len(lines) <= VISIBLE_LINES
    return "\n".join(lines) + "\n"


def _rows(
    verdicts: Sequence[Verdict],
    most: int,
    failing: Sequence[Verdict],
    baseline: StoredRun,
    contender: StoredRun,
) -> list[str]:
    """A Markdown table of the first `most` lines that the verdict table has for these."""
    report: Report = verdict_report(verdicts, failing, baseline, contender)
    table: Table = report.tables[0]
    shown = Table("", table.header, table.rows[:most], table.leading, table.right)
    more = []
    if (left := len(table.rows) - most) > 0:
        more = [f"… and {counted(left, 'more line')}: `bench compare` prints them.", ""]
    rows = markdown_table(shown.without_empty_columns()).splitlines()
    return [*map(_calling_nobody, rows), "", *more]


def _text(text: str) -> str:
    return _calling_nobody(markdown_cell(text))


def _calling_nobody(text: str) -> str:
    """Without a mention: what a stored run holds must not send people mail."""
    return text.replace("@", "@<!-- -->")
