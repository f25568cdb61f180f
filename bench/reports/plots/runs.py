"""Every plot that stored runs have figures for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.reports.plots.cost import cost_figure, rank_figure
from bench.reports.plots.memory import MemoryBar, memory_figure
from bench.reports.rows import comparison_rows
from bench.reports.tables import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.baselines import StoredRun


def run_figures(runs: Sequence[StoredRun]) -> Iterator[tuple[str, Figure]]:
    """Every plot that the runs have figures for, with a name for its file. Raises BenchError where
    they have figures for none."""
    rows, footer = comparison_rows(runs), " ".join(describe(run) for run in runs)
    made = 0
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        drawings = {
            "cost": partial(cost_figure, model, mine, footer),
            "parameters": partial(rank_figure, model, mine, footer),
        }
        for precision, bars in _measured_bars(runs, model).items():
            title = f"{model} in {precision}: memory at the peak of a step"
            drawings[f"memory-{precision}"] = partial(memory_figure, title, bars, footer)
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"
        for kind, draw in drawings.items():
            with contextlib.suppress(BenchError):  # no figures for this one
                yield f"{kind}-{slug}", draw()
                made += 1
    if not made:
        raise BenchError(f"{', '.join(run.label for run in runs)}: no figures for any plot")


def _measured_bars(runs: Sequence[StoredRun], model: str) -> dict[str, list[MemoryBar]]:
    """By precision: what each measured case's peak was made of."""
    found: dict[str, list[MemoryBar]] = {}
    for record in (record for run in runs for record in run.records.values()):
        parts = record.detail.get("breakdown")
        if record.model == model and record.precision and isinstance(parts, Mapping):
            label = f"{record.scenario} r{record.rank}"
            bar = MemoryBar(record.scenario, label, parts, measured=True)
            found.setdefault(record.precision, []).append(bar)
    return found
