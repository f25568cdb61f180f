"""Memory against time, cost against choice, parameters over r."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.reports.plots.drawing import (
    BLACK,
    HALO,
    LINES,
    MARKERS,
    PALETTE,
    RED,
    byte_unit,
    new_figure,
    plain,
    plain_ticks,
)
from bench.reports.rows import Row
from bench.statistics import pareto_front
from bench.units import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def cost_figure(title: str, rows: Sequence[Row], footer: str) -> Figure:
    """Peak memory (MiB or GiB) against step time (ms): one marker a precision, its Pareto front
    joined, and the cases on it named.

    Raises BenchError where no row has both.
    """
    shown = [r for r in rows if r.step_median_seconds is not None and r.peak_allocated_bytes]
    if not shown:
        raise BenchError(f"{title}: no case has both a step time and a peak to plot")
    figure = new_figure(8.5, 6, footer)
    axes = figure.add_subplot()
    plain(axes)
    unit, name = byte_unit(max(r.peak_allocated_bytes or 0 for r in shown))
    groups: dict[str, list[CostPoint]] = {}
    for r in shown:
        place = 1e3 * (r.step_median_seconds or 0), (r.peak_allocated_bytes or 0) / unit
        groups.setdefault(str(r.precision), []).append(CostPoint(*place, _case_name(r)))
    _fronts(axes, groups)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_ticks(axes.xaxis, axes.yaxis)
    axes.set_xlabel("step time: forward + backward + optimizer, median [ms]")
    axes.set_ylabel(f"peak allocated [{name}]")
    axes.set_title(f"{one_line(title)}: memory against time", loc="left", fontsize=11)
    axes.legend(title="precision, line: its Pareto front", fontsize=8, title_fontsize=8)
    return figure


@dataclass(frozen=True)
class CostPoint:
    """One case of a plot of cost. `filled` where it fits; one that is `chosen` has a ring around it
    and is named even where it is not on its front; one that is not named bears its `mark`."""

    x: float
    y: float
    name: str
    filled: bool = False
    chosen: bool = False
    mark: str = ""


def _fronts(axes: Axes, groups: Mapping[str, Sequence[CostPoint]]) -> None:
    """The points, one colour and marker a group; the Pareto front of each (both the less the
    better) joined, its points and the chosen one named."""
    for index, (group, mine) in enumerate(groups.items()):
        places = [(point.x, point.y) for point in mine]
        front = sorted(pareto_front(places), key=lambda i: places[i])
        colour = PALETTE[index % len(PALETTE)]
        axes.scatter(
            [x for x, _ in places], [y for _, y in places], s=34, linewidths=1.2,
            marker=MARKERS[index % len(MARKERS)], edgecolors=colour,
            facecolors=[colour if point.filled else "none" for point in mine], label=group,
            zorder=3,
        )  # fmt: skip
        axes.plot(
            [places[i][0] for i in front], [places[i][1] for i in front], drawstyle="steps-post",
            linestyle=LINES[index % len(LINES)], color=colour, linewidth=1,
        )  # fmt: skip
        chosen = [i for i, point in enumerate(mine) if point.chosen]
        middle = sum(x for x, _ in places) / len(places)
        named = dict.fromkeys([*front, *chosen])
        for place, i in enumerate(named):
            left = mine[i].chosen and mine[i].x > middle  # of its ring, where names have room
            axes.annotate(
                one_line(mine[i].name), places[i], fontsize=6.5, color=colour, bbox=HALO,
                weight="bold" if mine[i].chosen else "normal", ha="right" if left else "left",
                xytext=(-9 if left else 9 if mine[i].chosen else 5, 5 if place % 2 else -9),
                textcoords="offset points", zorder=2,
            )  # fmt: skip
        for i, point in enumerate(mine):
            if point.mark and i not in named:
                axes.annotate(
                    point.mark, places[i], fontsize=6.5, color=colour, ha="center", va="bottom",
                    xytext=(0, 4), textcoords="offset points",
                )  # fmt: skip
        axes.scatter(
            [mine[i].x for i in chosen], [mine[i].y for i in chosen], s=150, linewidths=1.2,
            marker="o", facecolors="none", edgecolors=BLACK,
        )  # fmt: skip


def choice_figure(
    title: str, groups: Mapping[str, Sequence[CostPoint]], footer: str, limit: tuple[str, int]
) -> Figure:
    """Predicted peak (bytes) against FLOPs relative to the cheapest, by precision; filled what
    fits, a ring around the row that is proposed. limit: the GPU and its bytes, a line."""
    figure = new_figure(8.5, 6, footer)
    axes = figure.add_subplot()
    plain(axes)
    unit, name = byte_unit(max(point.y for mine in groups.values() for point in mine))
    scaled = {g: [replace(p, y=p.y / unit) for p in mine] for g, mine in groups.items()}
    _fronts(axes, scaled)
    axes.axhline(limit[1] / unit, color=RED, linestyle="--", linewidth=1.2)
    axes.annotate(
        one_line(limit[0]), (0.5, limit[1] / unit), ha="center", va="bottom",
        xycoords=("axes fraction", "data"), fontsize=7.5, color=RED,
    )  # fmt: skip
    axes.set_yscale("log")
    plain_ticks(axes.yaxis)
    axes.set_xlabel("FLOPs of a step, relative to the cheapest row")
    axes.set_ylabel(f"predicted peak reserved [{name}]")
    axes.set_title(one_line(title), loc="left", fontsize=11)
    axes.legend(
        title="filled: fits; line: Pareto front of a precision", fontsize=8, title_fontsize=8
    )
    return figure


def _case_name(row: Row) -> str:
    return f"{row.scenario} r{row.rank}" if row.rank is not None else row.scenario


def rank_figure(title: str, rows: Sequence[Row], footer: str) -> Figure:
    """Trainable parameters against r, a line a scenario, both axes logarithmic.

    Raises BenchError where no scenario has two ranks.
    """
    lines: dict[str, dict[int, int]] = {}
    for row in rows:
        if row.rank is not None and row.trainable is not None:
            lines.setdefault(row.scenario, {})[row.rank] = row.trainable
    lines = {scenario: ranks for scenario, ranks in lines.items() if len(ranks) > 1}
    if not lines:
        raise BenchError(f"{title}: no scenario was counted at two ranks")
    figure = new_figure(9.5, 6, footer)
    axes = figure.add_subplot()
    plain(axes)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    alike: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for scenario, ranks in lines.items():  # scenarios that train the same share a line
        alike.setdefault(tuple(sorted(ranks.items())), []).append(one_line(scenario))
    ordered = sorted(alike.items(), key=lambda item: -item[0][-1][1])
    for index, (counts, scenarios) in enumerate(ordered):
        axes.plot(
            [r for r, _ in counts], [n for _, n in counts],
            label=textwrap.fill(" = ".join(scenarios), 38),
            color=PALETTE[index % len(PALETTE)], marker=MARKERS[index % len(MARKERS)],
            linestyle=LINES[index // len(PALETTE) % len(LINES)], markersize=4, linewidth=1.2,
        )  # fmt: skip
    every = sorted({r for ranks in lines.values() for r in ranks})
    axes.set_xticks(every, [str(r) for r in every])
    axes.set_xlabel("rank r")
    axes.set_ylabel("trainable parameters")
    axes.set_title(f"{one_line(title)}: trainable parameters over r", loc="left", fontsize=11)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
