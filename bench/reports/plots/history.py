"""A figure over the stored runs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.reports.plots.drawing import BLUE, GREEN, GREY, RED, new_figure, plain
from bench.units import format_change, format_quantity, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.baselines.history import Series

MOST_SERIES = 8
"""So many cases of a history are drawn."""


def history_figure(series: Sequence[Series], footer: str) -> Figure:
    """A figure of one or more cases over the stored runs: each run's value with its interval (the
    quartiles of its rounds), the level between steps, and where a step was found."""
    shown = series[:MOST_SERIES]
    if not shown:
        raise BenchError("no stored run has that figure")
    figure = new_figure(9.5, 0.8 + 2.3 * len(shown), footer)
    grid = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, one in zip(grid, shown, strict=True):
        plain(axes)
        values = [point.value for point in one.points]
        spread = [
            [point.value - point.low for point in one.points],
            [point.high - point.value for point in one.points],
        ]
        places = range(len(values))
        axes.errorbar(places, values, spread, fmt="o", color=BLUE, markersize=4, capsize=2)
        axes.plot(places, one.levels, drawstyle="steps-mid", color=GREY, linewidth=1.2)
        for step in one.steps:
            colour, mark = (RED, "▲") if step.worse else (GREEN, "▼")
            axes.axvline(step.index - 0.5, color=colour, linestyle="--", linewidth=1)
            axes.annotate(f"{mark} {format_change(step.ratio)}", (step.index - 0.5, 1),
                          xycoords=("data", "axes fraction"), fontsize=7.5, color=colour,
                          ha="center", va="bottom")  # fmt: skip
        axes.set_xticks(places, [one_line(point.run) for point in one.points], fontsize=7,
                        rotation=20 if len(values) > 8 else 0)  # fmt: skip
        axes.yaxis.set_major_formatter(lambda value, _, u=one.unit: format_quantity(value, u))
        axes.margins(y=0.25)
        if len(values) == 1:  # without another there is no scale, and one is made up
            axes.set_xlim(-1, 1)
            axes.set_ylim(0, max(point.high for point in one.points) * 1.25 or 1)
            axes.annotate("one run: nothing to hold it against", (0.5, values[0]), fontsize=7.5,
                          color=GREY, ha="center", va="center")  # fmt: skip
        name = [one_line(one.case), *textwrap.wrap(one_line(one.apart), 130)]
        axes.set_title("\n".join(name), loc="left", fontsize=8.5, pad=14)
    label = shown[0].label
    left = f" (the first {len(shown)} of {len(series)} series)" if len(series) > len(shown) else ""
    figure.suptitle(f"{label} over the stored runs{left}", x=0.01, ha="left", fontsize=11)
    return figure
