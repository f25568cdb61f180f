"""The comparison table by columns, each in one unit: what sorts, filters and typesets numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.reports.rows import Row
from bench.reports.tables import OUTCOME_WORDS
from bench.units import one_line, significant

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
