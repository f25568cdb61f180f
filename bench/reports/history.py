"""The steps of a figure over the stored runs, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.baselines import StoredRun
from bench.baselines.history import Series
from bench.reports.layout import BAD, EMPTY, GOOD, Report, Table
from bench.units import counted, first_of, format_change, format_quantity, one_line


def held_apart(series: Iterable[Series]) -> list[str]:
    """Which runs are not held against a case's first, and why; once for all cases."""
    said = (
        f"{first_of([p.run for p in one.points])}: not held against what came before: {one.apart}"
        for one in series
        if one.apart
    )
    return list(dict.fromkeys(map(one_line, said)))


def history_report(
    series: Sequence[Series],
    shown: Sequence[Series],
    runs: Sequence[StoredRun],
    interrupted: int = 0,
) -> Report:
    """A row a step, or a case without one; `series` are all, `shown` those of the table.

    interrupted: how many runs were left out since they were cut short.
    """
    rows, styles = [], []
    for one in shown:
        for step in one.steps:
            sure = "" if step.confirmed else " (unconfirmed: one run)"
            rows.append(
                (
                    one_line(one.case),
                    *(format_quantity(value, one.unit) for value in (step.before, step.after)),
                    format_change(step.ratio) + sure,
                    one_line(step.between),
                    one_line("; ".join(step.changed)) or EMPTY,
                )
            )
            styles.append(BAD if step.worse else GOOD)
        if not one.steps:
            level = format_quantity(one.levels[-1], one.unit)
            ends = dict.fromkeys((one.points[0].run, one.points[-1].run))
            between = one_line(" to ".join(ends))
            rows.append((one_line(one.case), level, level, "no step", between, EMPTY))
            styles.append("")
    header = ("case", "before", "after", "step", "between", "versions changed")
    label = series[0].label
    steps = sum(len(one.steps) for one in series)
    named = " to ".join(dict.fromkeys((runs[0].label, runs[-1].label)))
    found = f"{counted(steps, 'step')} in {counted(len({one.case for one in series}), 'case')}"
    caption = f"{counted(len(runs), 'run')} of {runs[-1].machine.id}, {named}: {found}."
    notes = [f"{counted(interrupted, 'interrupted run')} left out."] if interrupted else []
    notes += [f"{line}." for line in held_apart(series)]
    most = max(len(one.points) for one in series)
    if most == 1:
        notes.append("One run has nothing before it to differ from: a second one shows a change.")
    elif most < 4:
        notes.append("With fewer than four runs only large steps of times can be told from noise.")
    right = frozenset(("before", "after"))
    table = Table("", header, tuple(rows), 1, right, tuple(styles)).without_empty_columns()
    return Report(
        f"{label} over the stored runs", (caption,), (table,) if rows else (), tuple(notes)
    )
