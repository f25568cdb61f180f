"""What every picture is drawn with: formats, colours, an empty figure, ticks.

Each is drawn without a display and readable without colour: what differs by colour differs by
marker, line or hatch too. The colours are those of M. Okabe and K. Ito ("Color Universal Design",
2008), which people with any of the usual colour-vision deficiencies tell apart. The units stand at
the axes and the origin of the figures (machine, versions) below them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.files import check_output
from bench.units import GIB, MIB, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PICTURES = ("svg", "png")
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip
GREY, PALE = "#8c8c8c", "#e8e8e8"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
LABEL_POINTS = 6
LINES = ("-", "--", "-.", ":")
HALO = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}


def plot_format(path: Path) -> str:
    """ "svg" or "png", by the name's ending. Raises BenchError for any other and for
    a file that cannot be written, ModuleNotFoundError where matplotlib is not installed."""
    form = path.suffix.lower().removeprefix(".")
    if form not in PICTURES:
        raise BenchError(f"{path}: a plot is written as {' or '.join(f'.{f}' for f in PICTURES)}")

    # Told before anything is computed.
    import_module("matplotlib")
    check_output(path, [f".{form}"])
    return form


def new_figure(width: float, height: float, footer: str) -> Figure:
    """An empty figure of that size in inches, with its origin in small print below."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained", dpi=120)
    lines = textwrap.wrap(one_line(footer), int(width * 17))
    figure.supxlabel("\n".join(lines), fontsize=6.5, color="#555555", x=0.01, ha="left")
    return figure


def plain(axes: Axes) -> None:
    """No frame above and to the right, and a grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def spread_labels(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """A name right of each (name, x, y), moved up where it would lie on
    another, with a line to its point. Draw it last: the limits of the axes are not to change."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    per_point = figure.dpi / 72
    row = 1.3 * LABEL_POINTS * per_point
    taken: list[tuple[float, float, float]] = []  # left, right, middle of a label, in pixels
    for name, x, y in sorted(points, key=lambda point: point[2]):
        left, middle = axes.transData.transform((x, y))
        right = left + 0.65 * LABEL_POINTS * per_point * len(name) + 8 * per_point
        beside = [at for start, end, at in taken if start < right and left < end]
        lowest = min(at for at in (middle, *(at + row for at in beside)) if at >= middle
                      and all(abs(at - other) >= row - 1e-6 for other in beside))  # fmt: skip
        taken.append((left, right, lowest))
        moved = (lowest - middle) / per_point
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": GREY, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name, (x, y), xytext=(9 if moved > 2 else 5, moved), textcoords="offset points",
            fontsize=LABEL_POINTS, va="center", arrowprops=line if moved > 2 else None,
        )  # fmt: skip


def byte_unit(largest: float) -> tuple[int, str]:
    """The bytes and the name of the unit for figures of that size."""
    return (GIB, "GiB") if largest >= 2 * GIB else (MIB, "MiB")


def plain_ticks(*logarithmic: Axis) -> None:
    """Numbers as people write them on a logarithmic axis, between the powers of ten too."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    for axis in logarithmic:
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter("")
