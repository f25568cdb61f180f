"""The comparison table: what each scenario adapts, costs, and how it stands to a baseline."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from bench.baselines import VERDICTS, Machine, Record, Run, Verdict, compare
from bench.reports.layout import BAD, EMPTY, GOOD, NOTED, Report, Table
from bench.statistics import summarize
from bench.units import (
    format_bytes,
    format_change,
    format_count,
    format_percent,
    format_spread,
    one_line,
)

if TYPE_CHECKING:
    import pandas as pd

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "nf4", "fp4")
MEMORY = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_rss_bytes")
OUTCOME_WORDS = {"oom": "out of memory", "timed-out": "timed out"}
STYLES = {
    "regressed": BAD,
    "changed": BAD,
    "vanished": BAD,
    "incomparable": NOTED,
    "improved": GOOD,
}


def _column(header: str, default: Any = None) -> Any:
    return field(default=default, metadata={"header": header})


@dataclass(frozen=True)
class Row:
    """One line of the table, raw. The share is of the total with the adapter in it."""

    run: str = _column("run")
    model: str = _column("model")
    geometry: str | None = _column("geometry")
    scenario: str = _column("scenario")
    rank: int | None = _column("rank")
    precision: str | None = _column("precision")
    outcome: str = _column("outcome", "ok")
    layers: int | None = _column("layers adapted")
    trainable: int | None = _column("trainable parameters")
    total: int | None = _column("total parameters")
    share_percent: float | None = _column("trainable share [%]")
    peak_allocated_bytes: int | None = _column("peak allocated [bytes]")
    peak_reserved_bytes: int | None = _column("peak reserved [bytes]")
    peak_rss_bytes: int | None = _column("peak RSS [bytes]")
    step_median_seconds: float | None = _column("step time, median [s]")
    step_iqr_seconds: float | None = _column("step time, IQR [s]")
    rounds: int | None = _column("rounds")
    allocated_ratio: float | None = _column("peak allocated / baseline")
    step_ratio: float | None = _column("step time / baseline")
    verdict: str | None = _column("verdict")
    unstable: str | None = _column("unstable")


def comparison_table(runs: Sequence[Run], baseline: Run | None = None) -> pd.DataFrame:
    """Every row of the runs as a data frame: raw numbers, with units in the column names."""
    import pandas as pd

    headers = {item.name: item.metadata["header"] for item in fields(Row)}
    frame = pd.DataFrame(
        [asdict(row) for row in comparison_rows(runs, baseline)],
        columns=list(headers),
        dtype=object,
    )
    for item in fields(Row):
        kinds = {"int | None": "Int64", "float | None": "Float64"}
        frame[item.name] = frame[item.name].astype(kinds.get(str(item.type), "object"))
    return frame.rename(columns=headers)


def comparison_rows(runs: Sequence[Run], baseline: Run | None = None) -> list[Row]:
    """The rows: one for each model, geometry, scenario, rank and precision of each run.

    Figures that do not depend on the precision (layers, parameters) come from the case itself
    or, where it has none, from the counts and parameters suites' case of the same geometry.
    """
    return [row for run in runs for row in _rows_of_run(run, baseline)]


def _rows_of_run(run: Run, baseline: Run | None) -> list[Row]:
    verdicts: dict[str, list[Verdict]] = {}
    for verdict in compare(baseline, run) if baseline else ():
        verdicts.setdefault(verdict.record, []).append(verdict)
    groups: dict[tuple[str, str | None, str], list[Record]] = {}
    for record in run.records.values():
        key = (record.model, _text(record.detail.get("geometry")), record.scenario)
        groups.setdefault(key, []).append(record)
    models = list(dict.fromkeys(model for model, _, _ in groups))
    ordered = sorted(groups.items(), key=lambda item: models.index(item[0][0]))
    return [
        _row(run.label, geometry, members, verdicts, baseline is not None)
        for (_, geometry, _), records in ordered
        for members in _cases(records)
    ]


def _cases(records: Sequence[Record]) -> Iterator[list[Record]]:
    """The records behind each row of one scenario: the case's own first, then what fills it in."""
    known = sorted({record.rank for record in records if record.rank is not None})
    ranks: list[int | None] = [*known] or [None]
    for rank in ranks:
        mine = [record for record in records if record.rank in (rank, None)]
        shared = [record for record in mine if record.precision is None]
        found = {record.precision for record in mine if record.precision is not None}
        for precision in sorted(found, key=_precision_order):
            yield [*(record for record in mine if record.precision == precision), *shared]
        if not found:
            yield sorted(shared, key=lambda record: record.rank is None)


def _precision_order(precision: str) -> tuple[int, str]:
    known = precision in PRECISIONS
    return (PRECISIONS.index(precision) if known else len(PRECISIONS), precision)


def _row(
    run: str,
    geometry: str | None,
    members: Sequence[Record],
    verdicts: Mapping[str, Sequence[Verdict]],
    compared: bool,
) -> Row:
    own = members[0]
    metrics: dict[str, Any] = {}
    for record in reversed(members):
        metrics |= record.metrics
    trainable, total = metrics.get("trainable_parameters"), metrics.get("total_parameters")
    row = Row(
        run=run,
        model=own.model,
        geometry=geometry,
        scenario=own.scenario,
        rank=own.rank,
        precision=own.precision,
        outcome=next((record.outcome for record in members if record.outcome != "ok"), "ok"),
        layers=metrics.get("adapted_layers"),
        trainable=trainable,
        total=total,
        share_percent=100 * trainable / total if trainable is not None and total else None,
        peak_allocated_bytes=metrics.get("peak_allocated_bytes"),
        peak_reserved_bytes=metrics.get("peak_reserved_bytes"),
        peak_rss_bytes=metrics.get("peak_rss_bytes"),
        unstable=_text(own.detail.get("unstable")),
    )
    if rounds := metrics.get("step_seconds"):
        summary = summarize(rounds)
        row = replace(
            row,
            step_median_seconds=summary.median,
            step_iqr_seconds=summary.iqr,
            rounds=summary.rounds,
        )
    if compared:
        found = [verdict for record in members for verdict in verdicts.get(record.id, ())]
        ratios = {verdict.metric: verdict.ratio for verdict in verdicts.get(own.id, ())}
        row = replace(
            row,
            allocated_ratio=ratios.get("peak_allocated_bytes"),
            step_ratio=ratios.get("step_seconds"),
            verdict=min((v.verdict for v in found), key=VERDICTS.index, default=None),
        )
    return row


def comparison_report(runs: Sequence[Run], baseline: Run | None = None) -> Report:
    """The table for people: one for each model, measured cases only where there are any."""
    rows = comparison_rows(runs, baseline)
    measured = [row for row in rows if row.precision is not None]
    shown = measured or rows
    reasons = list(dict.fromkeys(row.unstable for row in shown if row.unstable))
    marks = {reason: f"†{number}" for number, reason in enumerate(reasons, 1)}
    tables = [
        _table(title, [row for row in shown if _title(row) == title], marks, len(runs) > 1)
        for title in dict.fromkeys(map(_title, shown))
    ]
    notes = [f"{mark} unstable: {reason}" for reason, mark in marks.items()]
    if any(row.step_median_seconds is not None for row in shown):
        notes.insert(0, "Step time: forward + backward + optimizer, median ± interquartile range.")
    if further := len(rows) - len(shown):
        notes.append(
            f"{further} further cases were counted but not measured; the CSV table has them."
        )
    if baseline:
        notes.append(f"Δ: change against run {describe(baseline)}")
    return Report(
        "LoRA target modules",
        tuple(f"Run {describe(run)}" for run in runs),
        tuple(tables),
        tuple(notes),
    )


def describe(run: Run) -> str:
    """Where a run's figures come from, in one line: machine, threads, versions, batch × length."""
    parts = [_machine(run.machine), ", ".join(f"{k} {v}" for k, v in run.versions.items())]
    workloads = dict.fromkeys(
        f"{record.detail['batch_size']} × {record.detail['seq_len']}"
        for record in run.records.values()
        if {"batch_size", "seq_len"} <= record.detail.keys()
    )
    if workloads:
        parts.append(f"batch × length {', '.join(workloads)}")
    if run.commit:
        parts.append(f"commit {run.commit}{' with changes' if run.dirty else ''}")
    return one_line(f"{run.label}: {'; '.join(parts)}.")


def _machine(machine: Machine) -> str:
    threads = f"{machine.threads} thread{'' if machine.threads == 1 else 's'}"
    inside = [machine.processor, f"{machine.cpu_count} cores", format_bytes(machine.memory_bytes)]
    if gpu := machine.accelerator:
        extra = [f"driver {gpu.driver}"] * bool(gpu.driver) + [f"CUDA {gpu.cuda}"] * bool(gpu.cuda)
        inside += [f"{gpu.count} × {gpu.name} with {format_bytes(gpu.memory_bytes)}", *extra]
    return f"{machine.id} ({', '.join(text for text in inside if text)}), {threads}"


def _title(row: Row) -> str:
    return one_line(f"{row.model} ({row.geometry})" if row.geometry else row.model)


def _table(title: str, rows: Sequence[Row], marks: Mapping[str, str], named: bool) -> Table:
    header = (
        "scenario", "run", "r", "layers", "trainable", "share", "precision", "peak allocated",
        "peak reserved", "peak RSS", "step time", "Δ peak", "Δ step", "verdict",
    )  # fmt: skip
    left = {"scenario", "run", "precision", "verdict"}
    measured = [name for name in MEMORY if any(getattr(row, name) is not None for row in rows)]
    return Table(
        title=title,
        header=header,
        rows=tuple(_cells(row, marks, measured, named) for row in rows),
        leading=6,
        right=frozenset(header) - left,
        styles=tuple(_style(row) for row in rows),
    ).without_empty_columns()


def _cells(
    row: Row, marks: Mapping[str, str], measured: Collection[str], named: bool
) -> tuple[str, ...]:
    ended = "" if row.outcome == "ok" else OUTCOME_WORDS.get(row.outcome, row.outcome)
    missing = ended if row.precision and ended else EMPTY
    step = missing
    if row.step_median_seconds is not None and row.step_iqr_seconds is not None:
        step = format_spread(row.step_median_seconds, row.step_iqr_seconds)
        step += f" ({ended})" if ended else ""
    mark = f" {marks[row.unstable]}" if row.unstable else ""

    def memory(name: str) -> str:
        value: int | None = getattr(row, name)
        if value is not None:
            return format_bytes(value)
        return missing if name in measured else EMPTY

    def change(ratio: float | None) -> str:
        return EMPTY if ratio is None else format_change(ratio)

    return (
        one_line(row.scenario),
        one_line(row.run) if named else EMPTY,
        EMPTY if row.rank is None else str(row.rank),
        EMPTY if row.layers is None else format_count(row.layers),
        EMPTY if row.trainable is None else format_count(row.trainable),
        EMPTY if row.share_percent is None else format_percent(row.share_percent),
        f"{row.precision or EMPTY}{mark}",
        memory("peak_allocated_bytes"),
        memory("peak_reserved_bytes"),
        memory("peak_rss_bytes"),
        step,
        change(row.allocated_ratio),
        change(row.step_ratio),
        row.verdict or EMPTY,
    )


def _style(row: Row) -> str:
    failed = BAD if row.outcome != "ok" else ""
    return STYLES.get(row.verdict or "", failed) or (NOTED if row.unstable else "")


def _text(value: object) -> str | None:
    return one_line(value) if value else None
