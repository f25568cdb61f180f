"""Predicted peaks against measured ones, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bench.reports.plots.drawing import BLUE, ORANGE, PALE, RED, new_figure, plain, plain_ticks
from bench.units import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.predict.evidence import Kept, Measured

BOUNDS = {"peak_allocated_bytes": 0.012, "peak_reserved_bytes": 0.08}
"""By figure: the error that no step should go beyond, as a share."""
_WORDS = {"peak_allocated_bytes": "peak allocated", "peak_reserved_bytes": "peak reserved"}


def evidence_figure(rows: Sequence[Measured], kept: Mapping[str, Kept]) -> Figure:
    """The error of each step's prediction over what was measured: a panel a figure, a marker a
    precision, with the bound that it is held to."""
    origin = (
        f"{len(rows)} training steps measured by others on a Tesla T4; nothing is fitted. "
        "Source: fixtures/measured. Grey: the bound of the tests."
    )
    figure = new_figure(9, 3.6, origin)
    for axes, name in zip(figure.subplots(1, 2), BOUNDS, strict=True):
        _panel(axes, name, rows, kept)
    figure.suptitle("Predicted against measured memory", x=0.01, ha="left", fontsize=11)
    return figure


def _panel(axes: Axes, name: str, rows: Sequence[Measured], kept: Mapping[str, Kept]) -> None:
    bound = 100 * BOUNDS[name]
    plain(axes)
    axes.axhspan(-bound, bound, color=PALE, zorder=0)
    for quantized, words, colour, marker in (
        (False, "fp16", BLUE, "o"), (True, "nf4", ORANGE, "^"),
    ):  # fmt: skip
        mine = [row for row in rows if row.quantized == quantized]
        axes.scatter(
            [row.bytes_of(name) / GIB for row in mine],
            [100 * row.error(name, kept) for row in mine],
            s=26, marker=marker, facecolors="none", edgecolors=colour, linewidths=1.2, label=words,
        )  # fmt: skip
    for row in (row for row in rows if abs(row.error(name, kept)) > BOUNDS[name]):
        place = row.bytes_of(name) / GIB, 100 * row.error(name, kept)
        axes.annotate(row.titled(), place, ha="right", va="center", fontsize=7, color=RED,
                      xytext=(-7, 0), textcoords="offset points")  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set_xlabel(f"measured {_WORDS[name]} [GiB]")
    axes.set_ylabel("predicted / measured − 1 [%]")
    axes.legend(fontsize=8, loc="best")
