"""The comparison table: rows of raw figures, and how they stand to a baseline; and its columns,
each in one unit: what sorts, filters and typesets numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from bench.baselines import VERDICTS, Record, StoredRun, Verdict, compare
from bench.baselines.configuration import in_words_of
from bench.statistics import summarize
from bench.training.options import PHASES
from bench.units import one_line, significant

if TYPE_CHECKING:
    import pandas as pd

OUTCOME_WORDS = {"oom": "out of memory", "timed-out": "timed out"}
_ORDER = ("fp32", "bf16", "fp16", "int8", "nf4", "fp4")


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
    loaded_bytes: int | None = _column("allocated when loaded [bytes]")
    first_step_peak_allocated_bytes: int | None = _column("first step's peak allocated [bytes]")
    peak_allocated_bytes: int | None = _column("peak allocated [bytes]")
    peak_reserved_bytes: int | None = _column("peak reserved [bytes]")
    process_bytes: int | None = _column("process on the GPU [bytes]")
    peak_rss_bytes: int | None = _column("peak RSS [bytes]")
    step_median_seconds: float | None = _column("step time, median [s]")
    step_iqr_seconds: float | None = _column("step time, IQR [s]")
    forward_median_seconds: float | None = _column("forward, median [s]")
    backward_median_seconds: float | None = _column("backward, median [s]")
    optimizer_median_seconds: float | None = _column("optimizer, median [s]")
    tokens_per_second: float | None = _column("tokens per second")
    rounds: int | None = _column("rounds")
    allocated_ratio: float | None = _column("peak allocated / baseline")
    step_ratio: float | None = _column("step time / baseline")
    verdict: str | None = _column("verdict")
    unstable: str | None = _column("unstable")


HEADERS: Mapping[str, str] = {item.name: item.metadata["header"] for item in fields(Row)}
"""The columns of the table, with their units, by field."""


def comparison_table(runs: Sequence[StoredRun], baseline: StoredRun | None = None) -> pd.DataFrame:
    """Every row of the runs as a data frame, to join and pivot: raw numbers, with units in the
    column names."""
    import pandas as pd

    frame = pd.DataFrame(
        [asdict(row) for row in comparison_rows(runs, baseline)],
        columns=list(HEADERS),
        dtype=object,
    )
    for item in fields(Row):
        kinds = {"int | None": "Int64", "float | None": "Float64"}
        kind: Any = kinds.get(str(item.type), "object")
        frame[item.name] = frame[item.name].astype(kind)
    return frame.rename(columns=HEADERS)


def comparison_rows(runs: Sequence[StoredRun], baseline: StoredRun | None = None) -> list[Row]:
    """The rows: one for each model, geometry, scenario, rank and precision of each run.

    Figures that do not depend on the precision (layers, parameters) come from the case itself
    or, where it has none, from the counts and parameters suites' case of the same geometry.
    """
    return [row for run in runs for row in _rows_of_run(run, baseline)]


def _rows_of_run(run: StoredRun, baseline: StoredRun | None) -> list[Row]:
    verdicts: dict[str, list[Verdict]] = {}
    if baseline is not None and baseline.is_same(run):
        baseline = None  # its own rows: nothing can differ
    if baseline is not None:
        run = in_words_of(baseline, run)  # as its verdicts call the cases
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
            elsewhere = found - {precision}  # a prediction goes with what it predicts
            own = [record for record in mine if record.precision == precision]
            yield [*own, *(each for each in shared if each.in_precision not in elsewhere)]
        if not found:
            yield sorted(shared, key=lambda record: record.rank is None)


def _precision_order(precision: str) -> tuple[int, str]:
    known = precision in _ORDER
    return (_ORDER.index(precision) if known else len(_ORDER), precision)


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
        unstable=_text(own.detail.get("unstable")),
        **{f.name: metrics.get(f.name) for f in fields(Row) if f.name.endswith("_bytes")},
    )
    if rounds := metrics.get("step_seconds"):
        summary = summarize(rounds)
        phases: dict[str, Any] = {
            f"{phase}_median_seconds": summarize(metrics[f"{phase}_seconds"]).median
            for phase in PHASES
            if metrics.get(f"{phase}_seconds")
        }
        tokens = own.detail.get("tokens_per_step")
        row = replace(
            row,
            **phases,
            tokens_per_second=_speed(tokens, summary.median),
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


def _speed(tokens: object, seconds: float) -> float | None:
    """Tokens per second; None where the step was too short for the clock to know any."""
    if not isinstance(tokens, int) or seconds <= 0:
        return None
    speed = tokens / seconds
    return speed if math.isfinite(speed) else None


def _text(value: object) -> str | None:
    return one_line(value) if value else None


_BYTES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


@dataclass(frozen=True)
class Column:
    """A header with its unit, and each row's cell: a plain number, or text; "" where there is none.

    better: -1 where less is better, 1 where more is, 0 where neither is."""

    header: str
    cell: Callable[[Row], str] = field(repr=False)
    number: bool = True
    better: int = 0


def columns_of(rows: Sequence[Row], several: bool = False) -> list[Column]:
    """The columns that have a figure. several: with the run's name, where there are several."""

    def text(header: str, of: Callable[[Row], object]) -> Column:
        return Column(header, lambda row: one_line(of(row) or ""), number=False)

    def number(
        header: str,
        of: Callable[[Row], float | None],
        form: Callable[[float], str],
        better: int = 0,
    ) -> Column:
        def cell(row: Row) -> str:
            value = of(row)
            return "" if value is None else form(value)

        return Column(header, cell, better=better)

    def scaled(
        name: str, header: str, units: Sequence[tuple[float, str]], better: int = -1
    ) -> Column:
        sizes = "step_median_seconds" if name == "step_iqr_seconds" else name  # one unit for both
        largest = max((getattr(row, sizes) or 0 for row in rows), default=0)
        scale, unit = next((u for u in units if largest >= u[0]), units[-1])
        return number(f"{header} [{unit}]", lambda row: getattr(row, name),
                      lambda value: significant(value / scale, 4), better)  # fmt: skip

    def percent(ratio: float) -> str:
        return f"{100 * (ratio - 1):+.1f}"

    found = [
        text("scenario", lambda row: row.scenario),
        *([text("run", lambda row: row.run)] if several else []),
        text("model", model_title),
        number("r", lambda row: row.rank, "{:d}".format),
        text("precision", lambda row: row.precision),
        text("verdict", lambda row: row.verdict),
        number("layers", lambda row: row.layers, "{:,d}".format),
        number("trainable", lambda row: row.trainable, "{:,d}".format),
        number("share [%]", lambda row: row.share_percent, significant),
        scaled("peak_allocated_bytes", "peak allocated", _BYTES),
        scaled("peak_reserved_bytes", "peak reserved", _BYTES),
        scaled("peak_rss_bytes", "peak RSS", _BYTES),
        scaled("step_median_seconds", "step time", _SECONDS),
        scaled("step_iqr_seconds", "IQR", _SECONDS, better=0),
        number("tokens/s", lambda row: row.tokens_per_second, "{:,.0f}".format, better=1),
        number("Δ peak [%]", lambda row: row.allocated_ratio, percent),
        number("Δ step [%]", lambda row: row.step_ratio, percent),
        text("remark", remark),
    ]
    return [column for column in found if any(column.cell(row) for row in rows)]


def model_title(row: Row) -> str:
    """The model, and its geometry where it is not its own."""
    return f"{row.model} ({row.geometry})" if row.geometry else row.model


def remark(row: Row) -> str:
    """How a case ended, if not well, and why its times are not to be trusted, if so."""
    ended = "" if row.outcome == "ok" else OUTCOME_WORDS.get(row.outcome, row.outcome)
    unstable = f"unstable: {row.unstable}" if row.unstable else ""
    return ", ".join(filter(None, (ended, unstable)))
