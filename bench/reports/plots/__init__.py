"""Pictures of what runs and predictions hold: figures in, a matplotlib figure out."""

from bench.reports.plots.cost import CostPoint, choice_figure, cost_figure, rank_figure
from bench.reports.plots.drawing import PICTURES, new_figure, plot_format
from bench.reports.plots.evidence import evidence_figure
from bench.reports.plots.history import MOST_SERIES, history_figure
from bench.reports.plots.learning import LossPoint, loss_figure
from bench.reports.plots.memory import (
    MemoryBar,
    memory_figure,
    phase_bars,
    predictions_figure,
    step_bar,
)
from bench.reports.plots.reach import DEAD, coverage_figure, reach_figure
from bench.reports.plots.runs import run_figures

__all__ = [
    "DEAD",
    "MOST_SERIES",
    "PICTURES",
    "CostPoint",
    "LossPoint",
    "MemoryBar",
    "choice_figure",
    "cost_figure",
    "coverage_figure",
    "evidence_figure",
    "history_figure",
    "loss_figure",
    "memory_figure",
    "new_figure",
    "phase_bars",
    "plot_format",
    "predictions_figure",
    "rank_figure",
    "reach_figure",
    "run_figures",
    "step_bar",
]
