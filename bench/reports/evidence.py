"""How good predictions are, as tables of the pages: of everything that is stored in
`fixtures/measured/`, and of measured steps that somebody sent.

Only stored files are read, and torch is not: what was measured, and what was predicted of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.files import FIXTURES, read_rows
from bench.predict.contributed import MeasuredStep, by_device
from bench.predict.evidence import (
    Agreement,
    Kept,
    Measured,
    agreement,
    agreement_of,
    load_kept,
    load_measured,
)
from bench.reports import published
from bench.reports.layout import Report, Table
from bench.training.options import PHASES
from bench.units import counted, format_bytes, one_line

BEGIN, END = "<!-- evidence -->", "<!-- end of evidence -->"
GOAL_MARKS = "<!-- goals: begin -->", "<!-- goals: end -->"
MEASURED_MARKS = "<!-- measured: begin -->", "<!-- measured: end -->"
TRAINERS = FIXTURES / "measured" / "trainers.csv"
CPU = FIXTURES / "measured" / "cpu.csv"
LIGER = FIXTURES / "measured" / "liger.csv"
GPU = FIXTURES / "measured" / "gpu.csv"
FIGURES = {
    "peak_allocated_bytes": "peak allocated",
    **{phase: f"peak of {phase}" for phase in PHASES},
    "peak_reserved_bytes": "peak reserved",
    "loaded_bytes": "after loading",
}
NEAR = 0.05
"""Of a published figure: what is farther off says why."""
_T4 = "a Tesla T4, by others; nothing fitted"
_RIVAL = "the same, as fitcheck-llm 0.3.1 states it, which was fitted on these rows"
_H200 = "an NVIDIA H200: Phi-3-medium, OPT-350m, DistilBERT at full size in fp16, int8, nf4"


@dataclass(frozen=True)
class Compared:
    """One step's peak, measured and predicted, in bytes; `kind` is the loop or the model."""

    kind: str
    measured_bytes: int
    predicted_bytes: int


def load_compared(path: Path) -> list[Compared]:
    """The rows of a table with `measured_bytes` and `predicted_bytes`, whose first column is the
    kind; lines that begin with `#` say where it is from. BenchError for what is wrong."""
    found = []
    for row in read_rows(path):
        try:
            measured, predicted = int(row["measured_bytes"]), int(row["predicted_bytes"])
        except KeyError as missing:
            raise BenchError(f"{path}: missing key {missing}") from None
        except (TypeError, ValueError):
            raise BenchError(f"{path}: {row}: a size is not a whole number of bytes") from None
        found.append(Compared(next(iter(row.values())), measured, predicted))
    return found


def _compared(path: Path, kind: str | None = None) -> Agreement:
    """How the rows of such a table agree, all of them or those of one kind."""
    rows = [row for row in load_compared(path) if kind in (None, row.kind)]
    return agreement_of(row.predicted_bytes / row.measured_bytes - 1 for row in rows)


def _of_phases(rows: Sequence[Measured], kept: Mapping[str, Kept]) -> Agreement:
    return agreement_of(row.error(phase, kept) for row in rows for phase in PHASES)


def _named(row: Measured) -> str:
    return row.titled("nf4" if row.quantized else "fp16")


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _said(found: Agreement) -> tuple[str, str]:
    """Mean and worst; with four digits after the point where two would say nothing."""

    def percent(share: float, sign: str = "") -> str:
        return f"{100 * share:{sign}.{2 if abs(share) >= 1e-4 else 4}f} %"

    return percent(found.mean), percent(found.worst, "+")


def _section(marks: tuple[str, str], *lines: str) -> str:
    return "\n".join((marks[0], "", *lines, "", marks[1]))


# --- README.md ------------------------------------------------------------------------------------


def evidence_table() -> str:
    """The table in Markdown, without marks."""
    lines = (_line(what, figure, found.rows, *_said(found)) for what, figure, found in _evidence())
    t4 = [next(lines) for _ in range(3)]
    return "\n".join((
        "| measured | figure | cases | mean error | worst |",
        "| :--- | :--- | ---: | ---: | ---: |",
        *t4,
        _line(_RIVAL, "peak allocated", 49, "0.7 %", "4.6 %"),
        _line(_RIVAL, "the whole process", 49, "2.4 %", "13.9 %"),
        *lines,
    ))  # fmt: skip


def evidence_section() -> str:
    """The table between its marks, as a page holds it."""
    return f"{BEGIN}\n{evidence_table()}\n{END}"


def _evidence() -> Iterator[tuple[str, str, Agreement]]:
    """What was measured, which figure, and how they agree: three rows of the T4's, then others."""
    kept, name = load_kept(), "peak_reserved_bytes"
    rows = [row for row in load_measured() if row.id in kept]
    yield _T4, "peak allocated", agreement("peak_allocated_bytes", rows, kept)
    yield _T4, "peak of forward, backward, optimizer", _of_phases(rows, kept)
    worst = max(rows, key=lambda row: abs(row.error(name, kept)))
    yield _T4, f"peak reserved (worst: {_named(worst)})", agreement(name, rows, kept)
    for figure in dict.fromkeys(row.kind for row in load_compared(GPU)):
        yield _H200, figure, _compared(GPU, figure)
    for words, path, kind in (
        ("`transformers.Trainer` on the CPU, by torch.profiler", TRAINERS, "trainer"),
        ("`trl.SFTTrainer` on the CPU, by torch.profiler", TRAINERS, "sft"),
        ("Liger's own kernels on the CPU, by Triton's interpreter and torch.profiler", LIGER, None),
        ("this project's own step on the CPU, by torch.profiler", CPU, None),
    ):
        yield words, "peak", _compared(path, kind)


# --- docs/prediction.md ---------------------------------------------------------------------------


def measured_section(rows: Sequence[Measured], kept: Mapping[str, Kept]) -> str:
    """The T4's rows that are predicted, by their precision, between the marks."""
    known = [row for row in rows if row.id in kept]
    lines = []
    for quantized, kind in ((False, "fp16"), (True, "nf4")):
        of_kind = [row for row in known if row.quantized == quantized]
        for name, words in FIGURES.items() if of_kind else ():
            found = agreement(name, of_kind, kept)
            lines.append(_line(f"{words}, {kind}", found.rows, *_said(found)))
    return _section(
        MEASURED_MARKS,
        f"{len(known)} of the {len(rows)} measured steps; nothing is fitted.",
        "",
        "| figure | rows | mean error | worst |",
        "| :--- | ---: | ---: | ---: |",
        *lines,
        _line("peak allocated, as fitcheck-llm 0.3.1 (fitted on these) states it", 49, "0.7 %",
              "4.6 %"),
        _line("the whole process (reserved, and the context), likewise", 49, "2.4 %", "13.9 %"),
    )  # fmt: skip


def goals_section() -> str:
    """What predictions were to reach, and what they reach, between the marks."""
    header = ("against", "cases", "goal", "reached: mean, worst", "fitcheck-llm 0.3.1 states")
    return _section(
        GOAL_MARKS,
        _line(*header, "missed"),
        "| :--- | ---: | :--- | :--- | :--- | :--- |",
        *(
            _line(against, found.rows, goal, ", ".join(_said(found)), rival, missed)
            for against, found, goal, rival, missed in _goals()
        ),
    )


def _goals() -> Iterator[tuple[str, Agreement, str, str, str]]:
    """What against, how they agree, the goal, what the rival states, by how much it is missed."""
    kept, rows, name = load_kept(), load_measured(), "peak_reserved_bytes"
    unstated = "not stated"
    found = agreement("peak_allocated_bytes", rows, kept)
    missed = _beyond(found, worst=0.012, mean=0.004)
    goal, rival = "each ≤ 1.2 %, mean ≤ 0.4 %, nothing fitted", "0.7 %, 4.6 %, fitted on these"
    yield "Tesla T4, peak allocated", found, goal, rival, missed
    found = _of_phases(rows, kept)
    yield "Tesla T4, peak of each phase", found, "each ≤ 3 %", unstated, _beyond(found, worst=0.03)
    found = agreement(name, rows, kept)
    missed = "; ".join(
        f"{_named(row)}, by {100 * (off - 0.08):.2f} points: what loading left free is not stated "
        "(below)"
        for row in rows
        if (off := abs(row.error(name, kept))) > 0.08
    )
    goal, rival = "mean ≤ 3 %, each ≤ 8 %", "2.4 %, 13.9 %, with the context, fitted"
    yield "Tesla T4, peak reserved", found, goal, rival, missed or _beyond(found, mean=0.03)
    loaded = agreement("loaded_bytes", [row for row in rows if row.quantized], kept)
    goal = "the 13 to 19 MiB of nf4 explained"
    yield "Tesla T4, nf4, after loading", loaded, goal, unstated, "explained below"
    for figure, most in (("peak allocated", 0.02), ("peak reserved", 0.05)):
        yield f"NVIDIA H200, {figure}", *_each(_compared(GPU, figure), most)
    stated = {row.id: row.bytes for row in published.load_published()}
    errors = [size / stated[id] - 1 for id, size in published.load_predicted().items()]
    far = sum(abs(error) > NEAR for error in errors)
    missed = f"{far} are farther off, each with its reason (below)"
    goal, rival = "within 5 % or the reason named", "states none of them"
    yield "published figures of others", agreement_of(errors), goal, rival, missed
    for words, path, kind, most in (
        ("transformers' Trainer, CPU", TRAINERS, "trainer", 0.005),
        ("TRL's SFTTrainer, CPU", TRAINERS, "sft", 0.005),
        ("Liger's kernels, interpreted, CPU", LIGER, None, 0.005),
        ("this project's own step, CPU", CPU, None, 0.001),
    ):
        yield words, *_each(_compared(path, kind), most)


def _each(found: Agreement, most: float) -> tuple[Agreement, str, str, str]:
    """A goal for every row, of which the rival says nothing."""
    return found, f"each ≤ {100 * most:g} %", "not stated", _beyond(found, worst=most)


def _beyond(found: Agreement, worst: float | None = None, mean: float | None = None) -> str:
    """By how many points a goal is missed; "no" where it is not."""
    over = [
        f"{what} by {100 * (size - goal):.2f} points"
        for what, size, goal in (("worst", abs(found.worst), worst), ("mean", found.mean, mean))
        if goal is not None and size > goal
    ]
    return ", ".join(over) or "no"


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


# --- what somebody sent ---------------------------------------------------------------------------


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
        for device, precision, count, mean, worst in by_device(steps)
    )
    notes += ("Both sides are as they were sent; no step was predicted or measured anew.",)
    table = Table("", header, tuple(rows), 1, right)
    return Report("Measured steps, as received", (), (table,), notes)
