"""One self-contained page of stored runs: what changed, every case, what is adapted, from where.

The page needs no network and no server. Its table is plain HTML, so that it can be read, printed
and searched without JavaScript; a small script sorts, filters and draws the plot from the table
itself. (A plotting library such as Vega would be five times the size of the page for one scatter
plot, and its points would not be the rows' links.) The template escapes every value: whatever a
model or scenario is called, it is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.baselines import StoredRun, Verdict
from bench.errors import BenchError
from bench.reports.otherwise import unseen_lines
from bench.reports.reached import ModelTree
from bench.reports.rows import Column, Row, columns_of, comparison_rows, model_title
from bench.reports.tables import dead_line, describe, findings, row_style
from bench.reports.verdicts import verdict_report
from bench.statistics import pareto_front
from bench.units import counted, format_bytes, one_line

_TEMPLATE = Path(__file__).parent / "template"


def page(
    runs: Sequence[StoredRun],
    baseline: StoredRun | None = None,
    *,
    verdicts: Sequence[Verdict] = (),
    failing: Sequence[Verdict] = (),
    failed_beside: str = "",
    trees: Sequence[ModelTree] = (),
    title: str = "LoRA target modules",
) -> str:
    """The page as one HTML document.

    verdicts: of the last run against the baseline, those that fail the gate in `failing`;
    failed_beside: what the run failed of beside them. trees: what each scenario adapts. Raises
    BenchError for a run without a case.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    rows = comparison_rows(runs, baseline)
    if not rows:
        raise BenchError(f"{', '.join(run.label for run in runs)}: a run without a case: no page")
    loader = FileSystemLoader(_TEMPLATE)
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=loader)
    columns = columns_of(rows, several=len(runs) > 1)
    texts = {
        name: (_TEMPLATE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    }
    from markupsafe import Markup

    return environment.get_template("page.html").render(
        title=one_line(title),
        runs=[describe(run) for run in runs],
        css=Markup(texts["page.css"]),
        script=Markup(texts["page.js"]),
        verdicts=_verdicts(verdicts, failing, baseline, runs[-1], failed_beside)
        if baseline
        else None,
        findings=[*findings(rows), *dead_line(runs)],
        measured=any(row.step_median_seconds is not None for row in rows),
        models=_plotted_models(rows),
        columns=columns,
        rows=_table_rows(rows, columns),
        notes=_notes(rows),
        trees=trees,
        predictions=_predictions(runs),
        facts=[fact for run in runs for fact in _facts(run)],
    )


def _verdicts(
    verdicts: Sequence[Verdict],
    failing: Sequence[Verdict],
    baseline: StoredRun,
    contender: StoredRun,
    failed_beside: str,
) -> dict[str, Any]:
    report = verdict_report(verdicts, failing, baseline, contender, failed_beside=failed_beside)
    result, _, counts = report.caption[-1].partition(": ")
    lines = [
        {"cells": cells, "style": style}
        for table in report.tables
        for cells, style in zip(table.rows, table.styles, strict=True)
    ]
    return {
        "failed": bool(failing or failed_beside),
        "result": result,
        "counts": counts,
        "baseline": report.caption[0],
        "header": report.tables[0].header if report.tables else (),
        "lines": lines,
        "notes": unseen_lines(baseline, contender, verdicts),
    }


# --- the table ------------------------------------------------------------------------------------


def _table_rows(rows: Sequence[Row], columns: Sequence[Column]) -> list[dict[str, Any]]:
    front = _fronts(rows)
    found, taken = [], dict[str, int]()
    for index, row in enumerate(rows):
        name = " ".join(
            str(part)
            for part in (row.run, model_title(row), row.scenario, f"r{row.rank}", row.precision)
        )
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-").lower()
        taken[slug] = taken.get(slug, 0) + 1
        again = f"-{taken[slug]}" if taken[slug] > 1 else ""
        found.append(
            {
                "id": f"case-{slug}{again}",
                "name": one_line(name),
                "cells": [column.cell(row) for column in columns],
                "measured": row.step_median_seconds is not None,
                "front": index in front,
                "style": row_style(row),
            }
        )
    return found


def _fronts(rows: Sequence[Row]) -> set[int]:
    """Indices of the rows on the Pareto front of their run, model and precision."""
    groups: dict[tuple[str, str, str | None], list[int]] = {}
    for index, row in enumerate(rows):
        if row.step_median_seconds is not None and row.peak_allocated_bytes:
            groups.setdefault((row.run, model_title(row), row.precision), []).append(index)
    found = set()
    for members in groups.values():
        points = [
            (rows[i].step_median_seconds or 0.0, float(rows[i].peak_allocated_bytes or 0))
            for i in members
        ]
        found |= {members[place] for place in pareto_front(points)}
    return found


def _plotted_models(rows: Iterable[Row]) -> list[str]:
    plotted = (row for row in rows if row.step_median_seconds and row.peak_allocated_bytes)
    return list(dict.fromkeys(one_line(model_title(row)) for row in plotted))


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    if any(row.step_median_seconds is not None for row in rows):
        notes.append(
            "Step time: forward + backward + optimizer, median of the rounds; IQR: their "
            "interquartile range. Bold: on the Pareto front of its model and precision."
        )
        if further := sum(row.step_median_seconds is None for row in rows):
            notes.append(f"{counted(further, 'case')} counted but not measured.")
    return notes


# --- predictions, machine -------------------------------------------------------------------------


def _predictions(runs: Sequence[StoredRun]) -> list[dict[str, str]]:
    found = []
    for run in runs:
        measured: dict[tuple[object, ...], object] = {
            (r.model, r.scenario, r.rank, r.precision): r.metrics.get("peak_allocated_bytes")
            for r in run.records.values()
            if r.precision
        }
        for record in run.records.values():
            value = record.metrics.get("predicted_peak_allocated_bytes")
            if not isinstance(value, int):
                continue
            case = (record.model, record.scenario, record.rank, record.in_precision)
            beside = measured.get(case)
            found.append(
                {
                    "case": one_line(record.id.partition("[")[2].rstrip("]") or record.id),
                    "predicted": format_bytes(value),
                    "measured": format_bytes(beside) if isinstance(beside, int) else "not measured",
                    "ratio": f"{value / beside:.3f}" if isinstance(beside, int) and beside else "",
                }
            )
    return found


def _facts(run: StoredRun) -> list[tuple[str, str]]:
    machine = run.machine
    cores, threads = counted(machine.cpu_count, "core"), counted(machine.threads, "thread")
    facts: list[tuple[str, object]] = [
        ("run", run.label),
        ("date", run.datetime or "not recorded"),
        ("commit", f"{run.commit or 'not recorded'}{' with changes' if run.dirty else ''}"),
        ("machine", machine.id),
        ("processor", f"{machine.processor}, {cores}, {threads}"),
        ("memory", format_bytes(machine.memory_bytes)),
    ]
    if gpu := machine.accelerator:
        facts.append(
            ("GPU", f"{gpu.count} × {gpu.name}, {format_bytes(gpu.memory_bytes)}, driver "
                    f"{gpu.driver or 'unknown'}, CUDA {gpu.cuda or 'unknown'}")
        )  # fmt: skip
    facts += [(name, version) for name, version in run.versions.items()]
    return [(name, one_line(value)) for name, value in facts]
