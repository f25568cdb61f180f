"""What of a model is adapted, and how much of each model type of the atlas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bench.reports.plots.drawing import BLACK, BLUE, GREY, ORANGE, PALE, RED, new_figure
from bench.reports.reached import ADAPTED, FROZEN, SAVED, Strip
from bench.units import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DEAD = "dead"
_STATE_LOOK = {
    ADAPTED: (BLUE, ""),
    SAVED: (ORANGE, "//"),
    FROZEN: (PALE, ""),
    DEAD: ("#ffffff", "xx"),
}
_STATE_WORDS = {SAVED: "trained whole", DEAD: "dead entry"}


def reach_figure(title: str, strips: Sequence[Strip], dead: Sequence[str], footer: str) -> Figure:
    """The model as strips, layers across and projections down: adapted, trained whole, frozen;
    entries that reach nothing below."""
    heights = [max(1, len(strip.rows)) for strip in strips] + ([len(dead)] if dead else [])
    figure = new_figure(10, 1.6 + 0.26 * sum(heights) + 0.5 * len(heights), footer)
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, strip in zip(grid, strips, strict=False):
        for y, states in enumerate(strip.rows.values()):
            for x, state in enumerate(states):
                if state is not None:
                    _cell(axes, x, y, state)
        _strip_axes(axes, strip.layers, list(strip.rows))
        axes.set_title(one_line(strip.title), loc="left", fontsize=8.5)
    if dead:
        axes = grid[-1]
        across = max((strip.layers for strip in strips), default=1)
        for y in range(len(dead)):
            for x in range(across):
                _cell(axes, x, y, DEAD)
        _strip_axes(axes, across, list(dead))
        axes.set_title("entries that reach nothing", loc="left", fontsize=8.5, color=RED)
    from matplotlib.patches import Patch

    look = {s: v for s, v in _STATE_LOOK.items() if s != DEAD or dead}
    patches = [
        Patch(facecolor=c, hatch=h, edgecolor=GREY, label=_STATE_WORDS.get(s, s))
        for s, (c, h) in look.items()
    ]
    figure.legend(handles=patches, loc="outside upper right", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(one_line(title), x=0.01, ha="left", fontsize=11)
    return figure


def _cell(axes: Axes, x: int, y: int, state: str) -> None:
    from matplotlib.patches import Rectangle

    colour, hatch = _STATE_LOOK[state]
    edge = RED if state == DEAD else "white"
    axes.add_patch(
        Rectangle((x, y), 0.92, 0.9, facecolor=colour, hatch=hatch, edgecolor=edge, linewidth=0)
    )


def _strip_axes(axes: Axes, layers: int, names: Sequence[str]) -> None:
    axes.set_xlim(0, max(layers, 1))
    axes.set_ylim(max(len(names), 1), 0)
    axes.set_yticks([y + 0.45 for y in range(len(names))], [one_line(n) for n in names], fontsize=7)
    shown = range(0, layers, max(1, -(-layers // 12)))
    axes.set_xticks([x + 0.46 for x in shown], [str(x) for x in shown], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def coverage_figure(
    title: str, scenarios: Sequence[str], shares: Mapping[str, Sequence[float | None]], footer: str
) -> Figure:
    """A heat map: model types down (in columns of forty), scenarios across; the share of the linear
    weights that each reaches, 0 to 1, None where PEFT refuses."""
    per_column = 40
    names = list(shares)
    columns = max(1, -(-len(names) // per_column))
    height = 1.5 + 0.17 * min(per_column, max(len(names), 1))
    figure = new_figure(1.2 + 2.55 * columns, height, footer)
    grid = figure.subplots(1, columns, squeeze=False)[0]
    image = None
    for number, axes in enumerate(grid):
        mine = names[number * per_column : (number + 1) * per_column]
        values = [[float("nan") if s is None else s for s in shares[name]] for name in mine]
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axes.set_ylim(min(len(names), per_column) - 0.5, -0.5)
        axes.set_yticks(range(len(mine)), [one_line(name) for name in mine], fontsize=5.5)
        axes.set_xticks(
            range(len(scenarios)), [one_line(s) for s in scenarios],
            fontsize=6, rotation=60, ha="left", rotation_mode="anchor",
        )  # fmt: skip
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for y, name in enumerate(mine):
            for x, share in enumerate(shares[name]):
                said = "—" if share is None else f"{100 * share:.0f}"
                dark = share is not None and share < 0.6
                axes.text(x, y, said, fontsize=4.6, ha="center", va="center",
                          color="white" if dark else BLACK)  # fmt: skip
        axes.spines[:].set_visible(False)
    assert image is not None
    bar = figure.colorbar(image, ax=list(grid), shrink=0.5, pad=0.01)
    bar.set_label("linear weights adapted (—: PEFT refuses, or has no default) [%]", fontsize=7)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100"], fontsize=6)
    figure.suptitle(one_line(title), x=0.01, ha="left", fontsize=11)
    return figure
