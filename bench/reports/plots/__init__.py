"""Pictures of what runs and predictions hold: figures in, a matplotlib figure out."""

from bench.reports.plots.cost import CostPoint, choice_figure, cost_figure, rank_figure
from bench.reports.plots.drawing import PICTURES, plot_format
from bench.reports.plots.evidence import evidence_figure
from bench.reports.plots.history import history_figure
from bench.reports.plots.memory import (
    MemoryBar,
    memory_figure,
    predictions_figure,
)
from bench.reports.plots.reach import coverage_figure, reach_figure
from bench.reports.plots.runs import run_figures

__all__ = [
    "PICTURES",
    "CostPoint",
    "MemoryBar",
    "choice_figure",
    "cost_figure",
    "coverage_figure",
    "evidence_figure",
    "history_figure",
    "memory_figure",
    "plot_format",
    "predictions_figure",
    "rank_figure",
    "reach_figure",
    "run_figures",
]
