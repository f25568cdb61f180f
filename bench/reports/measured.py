"""Measured steps beside their predictions, as the table that docs/prediction.md holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench.errors import BenchError
from bench.predict.contributed import MeasuredStep, summary
from bench.predict.evidence import Kept, Measured, agreement
from bench.reports.layout import Report, Table
from bench.training.options import PHASES
from bench.units import counted, format_bytes, one_line

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
FIGURES = {
    "peak_allocated_bytes": "peak allocated",
    **{phase: f"peak of {phase}" for phase in PHASES},
    "peak_reserved_bytes": "peak reserved",
    "loaded_bytes": "after loading",
}
_STATED = (
    "| peak allocated, as fitcheck-llm 0.3.1 (fitted on these) states it | 49 | 0.7 % | 4.6 % |",
    "| the whole process (reserved, and the context), likewise | 49 | 2.4 % | 13.9 % |",
)


def measured_section(rows: Sequence[Measured], kept: Mapping[str, Kept]) -> str:
    """The table in Markdown, between its marks: the rows that are predicted, by their precision."""
    known = [row for row in rows if row.id in kept]
    lines = [
        BEGIN,
        "",
        f"{len(known)} of the {len(rows)} measured steps; nothing is fitted.",
        "",
        "| figure | rows | mean error | worst |",
        "| :--- | ---: | ---: | ---: |",
        *_lines(known, kept),
        *_STATED,
        "",
        END,
    ]
    return "\n".join(lines)


def _lines(rows: Sequence[Measured], kept: Mapping[str, Kept]) -> Iterator[str]:
    for quantized, kind in ((False, "fp16"), (True, "nf4")):
        of_kind = [row for row in rows if row.quantized == quantized]
        for name, words in FIGURES.items() if of_kind else ():
            found = agreement(name, of_kind, kept)
            yield (
                f"| {words}, {kind} | {found.rows} | {100 * found.mean:.2f} % "
                f"| {100 * found.worst:+.2f} % |"
            )


def refreshed(page: str, section: str) -> str:
    """The page with what lies between the section's marks, its first and last line, replaced.

    Raises BenchError where the page has not both marks.
    """
    first, last = (section.splitlines()[at] for at in (0, -1))
    before, begun, rest = page.partition(first)
    _, ended, after = rest.partition(last)
    if not begun or not ended:
        raise BenchError(f"the marks {first} and {last} are not there")
    return before + section + after


def received_report(steps: Sequence[MeasuredStep]) -> Report:
    """What was sent: each step's peak, predicted beside measured, and how they agree."""
    rows = []
    for step in steps:
        said, seen = (d["peak_allocated_bytes"] for d in (step.predicted, step.measured))
        rows.append((
            one_line(step.case.id), step.device["name"], step.versions.get("torch", "?"),
            format_bytes(said), format_bytes(seen), f"{100 * step.difference:+.2f} %",
        ))  # fmt: skip
    header = ("step", "device", "torch", "predicted, as sent", "measured", "difference")
    right = frozenset(("predicted, as sent", "measured", "difference"))
    notes = tuple(
        f"{device}, {precision}: {counted(count, 'step')}, mean {100 * mean:.2f} %, "
        f"worst {100 * worst:+.2f} %"
        for device, precision, count, mean, worst in summary(steps)
    )
    notes += ("Both sides are as they were sent; no step was predicted or measured anew.",)
    table = Table("", header, tuple(rows), 1, right)
    return Report("Measured steps, as received", (), (table,), notes)
