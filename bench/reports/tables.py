"""The comparison table: what each scenario adapts, costs, and how it stands to a baseline."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from bench.baselines import Machine, StoredRun, Verdict, compare
from bench.baselines.accepted import FAILED, unproven
from bench.baselines.verdicts import CASE, VANISHED
from bench.reports.layout import BAD, EMPTY, GOOD, NOTED, Report, Table
from bench.reports.otherwise import unseen_lines
from bench.reports.reached import dead_entries
from bench.reports.rows import OUTCOME_WORDS, Row, comparison_rows
from bench.training.options import PHASES
from bench.units import (
    counted,
    first_of,
    format_bytes,
    format_change,
    format_count,
    format_percent,
    format_seconds,
    format_spread,
    one_line,
)

MEMORY = ("peak_allocated_bytes", "peak_reserved_bytes", "process_bytes", "peak_rss_bytes")
STYLES = {
    "regressed": BAD,
    "changed": BAD,
    "vanished": BAD,
    "incomparable": NOTED,
    "broken": BAD,
    "improved": GOOD,
}


def comparison_report(runs: Sequence[StoredRun], baseline: StoredRun | None = None) -> Report:
    """The table for people: one for each model, measured cases only where there are any; and a
    second one a model, of where memory and time go within the step."""
    rows = comparison_rows(runs, baseline)
    measured = [row for row in rows if row.precision is not None]
    shown = measured or rows
    reasons = list(dict.fromkeys(row.unstable for row in shown if row.unstable))
    marks = {reason: f"†{number}" for number, reason in enumerate(reasons, 1)}
    tables = []
    for title in dict.fromkeys(map(_title, shown)):
        mine = [row for row in shown if _title(row) == title]
        tables.append(_table(title, mine, marks, len(runs) > 1))
        if any(row.forward_median_seconds is not None for row in mine):
            tables.append(_phase_table(f"{title}: within the step", mine, len(runs) > 1))
    notes = [f"{mark} unstable: {reason}" for reason, mark in marks.items()]
    if any(row.step_median_seconds is not None for row in shown):
        notes.insert(0, "Step time: forward + backward + optimizer, median ± interquartile range.")
    if further := len(rows) - len(shown):
        notes.append(
            f"{counted(further, 'further case')} counted but not measured; the CSV table has them."
        )
    if baseline:
        notes.append(f"Δ: change against run {against(baseline)}")
    notes += [*_ended_badly(rows), *beside_rows(runs, baseline)]
    return Report(
        "LoRA target modules",
        tuple(f"Run {describe(run)}" for run in runs),
        tuple(tables),
        tuple(notes),
    )


def beside_rows(runs: Sequence[StoredRun], baseline: StoredRun | None) -> list[str]:
    """What no row says, in whatever format the rows are: the baseline's cases that have none, what
    is configured otherwise than there, and entries that reach nothing."""
    told: list[str] = []
    for run in runs:
        if baseline is not None and not baseline.is_same(run):
            verdicts = compare(baseline, run)
            told += _without_a_row(run, verdicts)
            told += unseen_lines(baseline, run, verdicts, of=run.label)
    return [*told, *dead_line(runs)]


def dead_line(runs: Sequence[StoredRun]) -> tuple[str, ...]:
    """The dead entries of the runs' own configurations, in a line; none where there are none."""
    dead = list(dict.fromkeys(line for run in runs for line in dead_entries(run)))
    return (f"dead: {first_of(dead)}",) if dead else ()


def _without_a_row(run: StoredRun, verdicts: Sequence[Verdict]) -> list[str]:
    """The baseline's cases that this run was asked for and has not; none where it has all."""
    gone = [one_line(v.record) for v in verdicts if v.metric == CASE and v.verdict == VANISHED]
    cases = counted(len(gone), "case")
    return [f"vanished in {run.label}: {cases} of the baseline: {first_of(gone)}"] if gone else []


def findings(rows: Sequence[Row]) -> tuple[str, ...]:
    """What a reader looks for first: of each model the fastest and the smallest case, and how many
    cases were unstable or did not end well. A time of an unstable case is no finding."""
    measured = [r for r in rows if r.step_median_seconds is not None and r.peak_allocated_bytes]
    found = []
    for title in dict.fromkeys(map(_title, measured)):
        mine = [row for row in measured if _title(row) == title]
        steady = [row for row in mine if not row.unstable]
        said = []
        if steady:
            fast = min(steady, key=lambda row: row.step_median_seconds or 0)
            said.append(f"fastest {_named(fast)}, {format_seconds(fast.step_median_seconds or 0)}")
        small = min(mine, key=lambda row: row.peak_allocated_bytes or 0)
        said.append(f"smallest {_named(small)}, {format_bytes(small.peak_allocated_bytes or 0)}")
        found.append(f"{title}: {'; '.join(said)}")
    if unstable := sum(bool(row.unstable) for row in rows):
        found.append(f"unstable: {unstable} of {len(measured)} measured cases")
    return (*found, *_ended_badly(rows))


def _ended_badly(rows: Sequence[Row]) -> Iterator[str]:
    """`failed: own r8`, with the model where there are several."""
    several = len({_title(row) for row in rows}) > 1
    for outcome in dict.fromkeys(row.outcome for row in rows if row.outcome != "ok"):
        ended = [row for row in rows if row.outcome == outcome]
        named = [f"{_title(row)} {_named(row)}" if several else _named(row) for row in ended]
        yield f"{OUTCOME_WORDS.get(outcome, outcome)}: {first_of(named)}"


def _named(row: Row) -> str:
    rank = "" if row.rank is None else f" r{row.rank}"
    return one_line(f"{row.scenario}{rank}{f' {row.precision}' if row.precision else ''}")


def describe(run: StoredRun) -> str:
    """Where a run's figures come from, in one line: machine, threads, versions, batch × length."""
    parts = [_machine(run.machine), ", ".join(f"{k} {v}" for k, v in run.versions.items())]
    workloads = dict.fromkeys(
        f"{record.detail['batch_size']} × {record.detail['seq_len']}"
        for record in run.records.values()
        if record.precision and {"batch_size", "seq_len"} <= record.detail.keys()
    )
    if workloads:
        parts.append(f"batch × length {', '.join(workloads)}")
    if run.commit:
        parts.append(f"commit {run.commit}{' with changes' if run.dirty else ''}")
    if run.interrupted:
        parts.append("interrupted: not every case was reached")
    elif run.gate == FAILED and run.path is not None:
        parts.append("its gate failed when it was stored")
    return one_line(f"{run.label}: {'; '.join(parts)}.")


def against(baseline: StoredRun) -> str:
    """`describe` of a baseline, with what has to be said of it beside every figure held against
    it."""
    return " ".join(filter(None, (describe(baseline), unproven(baseline))))


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
        "scenario", "run", "r", "outcome", "layers", "trainable", "share", "precision",
        "peak allocated",
        "peak reserved", "process on the GPU", "peak RSS", "step time", "Δ peak", "Δ step",
        "verdict",
    )  # fmt: skip
    left = {"scenario", "run", "outcome", "precision", "verdict"}
    measured = [name for name in MEMORY if any(getattr(row, name) is not None for row in rows)]
    return Table(
        title=title,
        header=header,
        rows=tuple(_cells(row, marks, measured, named) for row in rows),
        leading=7,
        right=frozenset(header) - left,
        styles=tuple(row_style(row) for row in rows),
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
        EMPTY if row.precision else ended or EMPTY,  # of a measured one in the place of its figures
        EMPTY if row.layers is None else format_count(row.layers),
        EMPTY if row.trainable is None else format_count(row.trainable),
        EMPTY if row.share_percent is None else format_percent(row.share_percent),
        f"{row.precision or EMPTY}{mark}",
        memory("peak_allocated_bytes"),
        memory("peak_reserved_bytes"),
        memory("process_bytes"),
        memory("peak_rss_bytes"),
        step,
        change(row.allocated_ratio),
        change(row.step_ratio),
        row.verdict or EMPTY,
    )


def _phase_table(title: str, rows: Sequence[Row], named: bool) -> Table:
    """Where the memory and the time of a case go; medians."""
    header = ("scenario", "run", "r", "precision", "loaded", "first step's peak", "steady peak",
              *PHASES, "tokens/s")  # fmt: skip
    left = {"scenario", "run", "precision"}
    cells = []
    for row in rows:
        memory = (row.loaded_bytes, row.first_step_peak_allocated_bytes, row.peak_allocated_bytes)
        seconds = [getattr(row, f"{phase}_median_seconds") for phase in PHASES]
        tokens = row.tokens_per_second
        cells.append(
            (
                one_line(row.scenario),
                one_line(row.run) if named else EMPTY,
                EMPTY if row.rank is None else str(row.rank),
                row.precision or EMPTY,
                *(EMPTY if value is None else format_bytes(value) for value in memory),
                *(EMPTY if value is None else format_seconds(value) for value in seconds),
                EMPTY if tokens is None else format_count(round(tokens)),
            )
        )
    return Table(title, header, tuple(cells), 4, frozenset(header) - left).without_empty_columns()


def row_style(row: Row) -> str:
    """BAD, GOOD, NOTED or "": how a row is painted."""
    failed = BAD if row.outcome != "ok" else ""
    return STYLES.get(row.verdict or "", failed) or (NOTED if row.unstable else "")
