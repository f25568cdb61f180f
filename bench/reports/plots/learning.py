"""Loss against what it costs: one point an arm, with the interval of its mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.reports.plots.drawing import (
    BLUE,
    GREY,
    ORANGE,
    byte_unit,
    new_figure,
    plain,
    spread_labels,
)
from bench.units import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.statistics import Interval


@dataclass(frozen=True)
class LossPoint:
    """One arm: loss in nats, whether it trains the budget, trainable parameters, bytes at the peak
    of a step (None if nobody looked), seconds of a step."""

    name: str
    loss: Interval
    matched: bool
    trainable: int
    peak_bytes: int | None
    step_seconds: float


def loss_figure(title: str, points: Sequence[LossPoint], footer: str) -> Figure:
    """Three panels that share the loss; arms at one budget are filled circles, others squares."""
    figure = new_figure(13, 5.5, footer)
    axes = figure.subplots(1, 3, sharey=True)
    unit, name = byte_unit(max((p.peak_bytes or 0 for p in points), default=0))
    drawn: tuple[tuple[str, list[float | None]], ...] = (
        ("trainable parameters", [float(p.trainable) for p in points]),
        (f"peak memory of a step [{name}]", [p.peak_bytes and p.peak_bytes / unit for p in points]),
        ("step time, the processor's [ms]", [1e3 * p.step_seconds for p in points]),
    )
    for panel, (label, places) in zip(axes, drawn, strict=True):
        plain(panel)
        for point, x in zip(points, places, strict=True):
            if x is not None:
                _point(panel, point, x)
        panel.set_xlabel(label)
        panel.margins(x=0.12)
    axes[0].set_xscale("log")
    axes[0].set_ylabel("evaluation loss [nats], 95 % interval over seeds")
    axes[0].set_title(one_line(title), loc="left", fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    kinds = dict(zip(labels, handles, strict=True))
    axes[0].legend(kinds.values(), kinds.keys(), fontsize=8)
    for panel, (_, places) in zip(axes, drawn, strict=True):
        placed = zip(points, places, strict=True)
        spread_labels(panel, [(p.name, x, p.loss.mean) for p, x in placed if x is not None])
    return figure


def _point(axes: Axes, point: LossPoint, x: float) -> None:
    half = point.loss.high - point.loss.mean
    axes.errorbar(
        x, point.loss.mean, yerr=half if math.isfinite(half) else 0.0,
        fmt="o" if point.matched else "s", markersize=5, color=GREY, elinewidth=0.7,
        markerfacecolor=BLUE if point.matched else "white",
        markeredgecolor=BLUE if point.matched else ORANGE,
        label="at one budget" if point.matched else "at its own size",
    )  # fmt: skip
