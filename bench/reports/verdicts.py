"""Verdicts for people: what differs, by how much, why, and the command that accepts it."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.baselines import (
    FAILING,
    METRICS,
    VERDICTS,
    StoredRun,
    Verdict,
    as_json,
    count_verdicts,
    left_out,
    unused,
)
from bench.baselines.accepted import unproven
from bench.baselines.metrics import LOSS, TIME
from bench.baselines.storage import SAVE_HINT, named
from bench.baselines.verdicts import INCOMPARABLE, NEW, UNCHANGED
from bench.reports.layout import BAD, EMPTY, GOOD, NOTED, Report, Table
from bench.reports.otherwise import unseen_line, unseen_lines
from bench.reports.tables import against, describe
from bench.statistics import CONFIDENCE
from bench.units import counted, format_change, format_quantity, one_line

if TYPE_CHECKING:
    import pandas as pd

DIGESTS = ("ledger_digest",)
"""Figures that say nothing to a reader but whether they are equal."""

MANY = 3
"""So many incomparable or new figures with one reason are listed; more are counted."""


def verdict_table(verdicts: Iterable[Verdict], failing: Iterable[Verdict] = ()) -> pd.DataFrame:
    """`verdict_rows` as a data frame, to join and pivot."""
    import pandas as pd

    return pd.DataFrame(verdict_rows(verdicts, failing), dtype=object)  # counts stay whole


def verdict_rows(
    verdicts: Iterable[Verdict], failing: Iterable[Verdict] = ()
) -> list[dict[str, Any]]:
    """Every verdict, the worst first: raw figures in the unit beside them."""
    failed, rows = set(failing), []
    for verdict in ranked(verdicts):
        row = as_json(verdict)
        row["interval_low"], row["interval_high"] = row.pop("interval") or (None, None)
        rows.append({**row, "fails": verdict in failed})
    return rows


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many of each verdict, the failing ones first. What could not be judged is unchanged for
    the gate, and told apart for a reader."""
    judged = count_verdicts(verdict for verdict in verdicts if not verdict.not_judged)
    left = Counter(_measured(verdict) for verdict in verdicts if verdict.not_judged)
    told = ", ".join(f"{count:,} {name}" for name, count in judged.items() if count)
    rest = (f"{_several(count, kind)} not judged" for kind, count in left.items())
    return "; ".join(filter(None, (told, *rest))) or "nothing to compare"


def headline(verdicts: Sequence[Verdict], failing: Sequence[Verdict], failed_beside: str) -> str:
    """Whether the run passed, of `failed_beside` too: what it failed of, whatever its verdicts."""
    if failed_beside and not failing:
        return f"FAILED: {failed_beside}; no verdict fails ({summary(verdicts)})"
    return f"{'FAILED' if failing else 'passed'}: {summary(verdicts)}"


def _measured(verdict: Verdict) -> str:
    return LOSS if METRICS[verdict.metric].kind == LOSS else TIME


def _several(count: int, kind: str) -> str:
    return f"{count:,} losses" if kind == LOSS and count != 1 else counted(count, kind)


def ranked(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The worst first, otherwise in order."""
    return sorted(verdicts, key=lambda verdict: VERDICTS.index(verdict.verdict))


def verdict_report(
    verdicts: Sequence[Verdict],
    failing: Sequence[Verdict],
    baseline: StoredRun,
    contender: StoredRun,
    *,
    save_command: str = SAVE_HINT,
    allow: Iterable[str] = (),
    failed_beside: str = "",
    whole: str = "",
) -> Report:
    """What changed, regressions first. Failing verdicts are all listed; the unchanged counted.

    save_command: what stores the contender's figures, where they are not stored yet; "" where they
    are nobody's baseline. allow: what `gate` was given. failed_beside: as in `headline`. whole:
    what names all that is configured otherwise, where this report is to have a line of it.
    """
    caption = (
        f"Baseline {against(baseline)}",
        f"Contender {describe(contender)}",
        f"{headline(verdicts, failing, failed_beside)}.",
    )
    lines = _lines([item for item in ranked(verdicts) if item.verdict != UNCHANGED], failing)
    table = Table(
        title="",
        header=(
            "verdict",
            "case",
            "metric",
            "expected",
            "obtained",
            "difference",
            "tolerated",
            "why",
        ),
        rows=tuple(line.cells for line in lines),
        leading=2,
        right=frozenset(("expected", "obtained")),
        styles=tuple(line.style for line in lines),
    )
    remarks = Counter(
        (_measured(v) if v.not_judged else "", v.explanation)
        for v in verdicts
        if v.verdict == UNCHANGED and v.explanation
    )
    notes = [
        f"{_several(count, kind)} {text}."
        if kind
        else f"{count:,} unchanged with a remark: {text}."
        for (kind, text), count in remarks.items()
    ]
    notes += _unused(verdicts, allow)
    if missing := left_out(baseline, contender):
        notes.append(
            f"{counted(len(missing), 'case')} of the baseline not compared: this run was not "
            f"asked for {'it' if len(missing) == 1 else 'them'}."
        )
    if whole:
        notes += unseen_line(baseline, contender, verdicts, whole)
    else:
        notes += unseen_lines(baseline, contender, verdicts)
    if failing and not contender.interrupted and (contender.path or save_command):
        notes.append(f"To accept the new figures: {_accepting(contender, save_command)}")
    return Report("Verdicts", caption, (table,) if lines else (), tuple(notes))


def beside_data(
    verdicts: Sequence[Verdict],
    baseline: StoredRun,
    contender: StoredRun,
    allow: Iterable[str] = (),
) -> list[str]:
    """What is to be said beside verdicts in a format that holds verdicts alone."""
    return [
        *filter(None, [unproven(baseline)]),
        *_unused(verdicts, allow),
        *unseen_lines(baseline, contender, verdicts),
    ]


def _unused(verdicts: Sequence[Verdict], allow: Iterable[str]) -> list[str]:
    return [
        f"--allow {text} let nothing pass: no failing verdict is like that."
        for text in unused(verdicts, allow)
    ]


def _accepting(contender: StoredRun, save_command: str) -> str:
    """The command that makes the contender a baseline, stored or not."""
    if contender.path:
        return f"bench accept {shlex.quote(named(contender.path))} --reason WHY"
    storage = re.search(r"--(?:benchmark-storage|results)[= ](?:file://)?(\S+)", save_command)
    there = f" --results {storage[1]}" if storage else ""
    return f"{save_command}, then bench accept NAME --reason WHY{there}"


@dataclass(frozen=True)
class _Line:
    cells: tuple[str, ...]
    style: str


def _lines(verdicts: Sequence[Verdict], failing: Sequence[Verdict]) -> list[_Line]:
    failed = set(failing)
    alike = Counter((v.verdict, v.metric, v.explanation) for v in verdicts)
    lines, told = [], set()
    for verdict in verdicts:
        key = (verdict.verdict, verdict.metric, verdict.explanation)
        many = verdict.verdict in (INCOMPARABLE, NEW) and alike[key] > MANY
        if many and key in told:
            continue
        told.add(key)
        case = f"{alike[key]} cases" if many else verdict.record
        lines.append(_Line(_cells(verdict, case, many, verdict in failed), _style(verdict, failed)))
    return lines


def _style(verdict: Verdict, failed: set[Verdict]) -> str:
    if verdict in failed:
        return BAD
    return GOOD if verdict.verdict == "improved" else NOTED


def _cells(verdict: Verdict, case: str, many: bool, fails: bool) -> tuple[str, ...]:
    metric = METRICS.get(verdict.metric)
    unit = metric.unit if metric else "text"

    def figure(value: float | str | None) -> str:
        if value is None or many or verdict.metric in DIGESTS:
            return EMPTY
        return one_line(format_quantity(value, unit))

    allowed = verdict.verdict in FAILING and not fails
    return (
        f"{verdict.verdict} (allowed)" if allowed else verdict.verdict,
        one_line(case),
        metric.label if metric else verdict.metric,
        figure(verdict.baseline),
        figure(verdict.contender),
        EMPTY if many else _difference(verdict, unit),
        f"{100 * verdict.threshold:g} %" if verdict.threshold else EMPTY,
        one_line(verdict.explanation) or EMPTY,
    )


def _difference(verdict: Verdict, unit: str) -> str:
    old, new = verdict.baseline, verdict.contender
    if verdict.metric in DIGESTS and old and new:
        return "not the same"
    if not isinstance(old, int | float) or not isinstance(new, int | float):
        return EMPTY
    sign = "±" if new == old else "+" if new > old else "-"
    parts = [] if verdict.ratio is None else [format_change(verdict.ratio)]
    if verdict.interval:
        low, high = map(format_change, verdict.interval)
        parts.append(f"{CONFIDENCE:.0%} interval {low} to {high}")
    inside = f" ({', '.join(parts)})" if parts else ""
    return f"{sign}{format_quantity(abs(new - old), unit)}{inside}"
