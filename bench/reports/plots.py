"""Pictures of what runs and predictions hold: figures in, a matplotlib figure out.

Each is drawn without a display and readable without colour: what differs by colour differs by
marker, line or hatch too. The colours are those of M. Okabe and K. Ito ("Color Universal Design",
2008), which people with any of the usual colour-vision deficiencies tell apart. The units stand at
the axes and the origin of the figures (machine, versions) below them.
"""

from __future__ import annotations

import contextlib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.files import check_output
from bench.reports.predicted import PARTS
from bench.reports.reached import ADAPTED, FROZEN, SAVED, Strip
from bench.reports.rows import Row, comparison_rows
from bench.reports.tables import describe
from bench.statistics import pareto_front
from bench.units import format_bytes, format_change, format_quantity, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from bench.baselines import StoredRun
    from bench.baselines.history import Series
    from bench.measure import Measurement
    from bench.predict.result import Prediction

FORMATS = ("svg", "png")
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip
GREY, PALE = "#8c8c8c", "#e8e8e8"
_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK, YELLOW)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
_LINES = ("-", "--", "-.", ":")
_HALO = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
MIB, GIB = 2**20, 2**30
MOST_SERIES = 8
"""So many cases of a history are drawn."""


def plot_format(path: Path) -> str:
    """ "svg" or "png", by the name's ending. Raises BenchError for any other and for
    a file that cannot be written, ModuleNotFoundError where matplotlib is not installed."""
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise BenchError(f"{path}: a plot is written as {' or '.join(f'.{f}' for f in FORMATS)}")

    # Told before anything is computed.
    import_module("matplotlib")
    check_output(path)
    return form


def new_figure(width: float, height: float, footer: str) -> Figure:
    """An empty figure of that size in inches, with its origin in small print below."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained", dpi=120)
    lines = textwrap.wrap(one_line(footer), int(width * 17))
    figure.supxlabel("\n".join(lines), fontsize=6.5, color="#555555", x=0.01, ha="left")
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


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


# --- cost -----------------------------------------------------------------------------------------


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
    _plain(axes)
    unit, name = _byte_unit(max(r.peak_allocated_bytes or 0 for r in shown))
    groups: dict[str, list[Point]] = {}
    for r in shown:
        place = 1e3 * (r.step_median_seconds or 0), (r.peak_allocated_bytes or 0) / unit
        groups.setdefault(str(r.precision), []).append(Point(*place, _case_name(r)))
    _fronts(axes, groups)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_ticks(axes.xaxis, axes.yaxis)
    axes.set_xlabel("step time: forward + backward + optimizer, median [ms]")
    axes.set_ylabel(f"peak allocated [{name}]")
    axes.set_title(f"{one_line(title)}: memory against time", loc="left", fontsize=11)
    axes.legend(title="precision, line: its Pareto front", fontsize=8, title_fontsize=8)
    return figure


@dataclass(frozen=True)
class Point:
    """One case of a plot of cost. `filled` where it fits; one that is `chosen` has a ring around it
    and is named even where it is not on its front."""

    x: float
    y: float
    name: str
    filled: bool = False
    chosen: bool = False


def _fronts(axes: Axes, groups: Mapping[str, Sequence[Point]]) -> None:
    """The points, one colour and marker a group; the Pareto front of each (both the less the
    better) joined, its points and the chosen one named."""
    for index, (group, mine) in enumerate(groups.items()):
        places = [(point.x, point.y) for point in mine]
        front = sorted(pareto_front(places), key=lambda i: places[i])
        colour = _COLOURS[index % len(_COLOURS)]
        axes.scatter(
            [x for x, _ in places], [y for _, y in places], s=34, linewidths=1.2,
            marker=_MARKERS[index % len(_MARKERS)], edgecolors=colour,
            facecolors=[colour if point.filled else "none" for point in mine], label=group,
        )  # fmt: skip
        axes.plot(
            [places[i][0] for i in front], [places[i][1] for i in front], drawstyle="steps-post",
            linestyle=_LINES[index % len(_LINES)], color=colour, linewidth=1,
        )  # fmt: skip
        chosen = [i for i, point in enumerate(mine) if point.chosen]
        for place, i in enumerate(dict.fromkeys([*front, *chosen])):
            left = mine[i].chosen  # beside its ring, where longer names have room
            axes.annotate(
                one_line(mine[i].name), places[i], fontsize=6.5, color=colour, bbox=_HALO,
                weight="bold" if left else "normal", ha="right" if left else "left",
                xytext=(-9 if left else 5, 5 if place % 2 else -9), textcoords="offset points",
            )  # fmt: skip
        axes.scatter(
            [mine[i].x for i in chosen], [mine[i].y for i in chosen], s=150, linewidths=1.2,
            marker="o", facecolors="none", edgecolors=BLACK,
        )  # fmt: skip


def choice_figure(
    title: str, groups: Mapping[str, Sequence[Point]], footer: str, limit: tuple[str, int]
) -> Figure:
    """Predicted peak (bytes) against FLOPs relative to the cheapest, by precision; filled what
    fits, a ring around the row that is proposed. limit: the GPU and its bytes, a line."""
    figure = new_figure(8.5, 6, footer)
    axes = figure.add_subplot()
    _plain(axes)
    unit, name = _byte_unit(max(point.y for mine in groups.values() for point in mine))
    scaled = {g: [replace(p, y=p.y / unit) for p in mine] for g, mine in groups.items()}
    _fronts(axes, scaled)
    axes.axhline(limit[1] / unit, color=RED, linestyle="--", linewidth=1.2)
    axes.annotate(
        one_line(limit[0]), (0.5, limit[1] / unit), ha="center", va="bottom",
        xycoords=("axes fraction", "data"), fontsize=7.5, color=RED,
    )  # fmt: skip
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis)
    axes.set_xlabel("FLOPs of a step, relative to the cheapest row")
    axes.set_ylabel(f"predicted peak reserved [{name}]")
    axes.set_title(one_line(title), loc="left", fontsize=11)
    axes.legend(
        title="filled: fits; line: Pareto front of a precision", fontsize=8, title_fontsize=8
    )
    return figure


def _case_name(row: Row) -> str:
    return f"{row.scenario} r{row.rank}" if row.rank is not None else row.scenario


def _byte_unit(largest: float) -> tuple[int, str]:
    return (GIB, "GiB") if largest >= 2 * GIB else (MIB, "MiB")


def _plain_ticks(*logarithmic: Axis) -> None:
    """Numbers as people write them on a logarithmic axis, between the powers of ten too."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    for axis in logarithmic:
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter("")


# --- parameters over r ----------------------------------------------------------------------------


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
    _plain(axes)
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
            color=_COLOURS[index % len(_COLOURS)], marker=_MARKERS[index % len(_MARKERS)],
            linestyle=_LINES[index // len(_COLOURS) % len(_LINES)], markersize=4, linewidth=1.2,
        )  # fmt: skip
    every = sorted({r for ranks in lines.values() for r in ranks})
    axes.set_xticks(every, [str(r) for r in every])
    axes.set_xlabel("rank r")
    axes.set_ylabel("trainable parameters")
    axes.set_title(f"{one_line(title)}: trainable parameters over r", loc="left", fontsize=11)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# --- memory by part -------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryBar:
    """One bar: `parts` in bytes, which sum to the height. measured: told apart by its outline.

    group: bars of one group stand together (a case, or a phase of the step).
    """

    group: str
    label: str
    parts: Mapping[str, int]
    measured: bool = False

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def step_bar(said: Prediction) -> MemoryBar:
    """What a predicted step's peak is made of."""
    return MemoryBar(said.scenario, f"{said.scenario} {said.precision}", said.breakdown)


def phase_bars(said: Prediction, seen: Measurement | None = None) -> list[MemoryBar]:
    """What a step's phases are made of at their peaks, predicted and, where there is, measured."""
    bars, case = [], f"{said.scenario} r{said.rank} {said.precision}"
    for phase, parts in said.breakdown_by_phase.items():
        bars.append(MemoryBar(case, phase, parts))
        if seen is not None:
            bars.append(MemoryBar(case, phase, seen.breakdown_by_phase[phase], measured=True))
    return bars


def memory_figure(
    title: str, bars: Sequence[MemoryBar], footer: str, limit: tuple[str, int] | None = None
) -> Figure:
    """Stacked memory, a bar a case or phase, predicted beside measured where both are there.

    limit: the name of a GPU and its bytes, drawn as a line. Raises BenchError without bars.
    """
    if not bars:
        raise BenchError(f"{title}: nothing to plot")
    figure = new_figure(max(6.5, 2.8 + 0.95 * len(bars)), 5.5, footer)
    axes = figure.add_subplot()
    _plain(axes)
    axes.grid(visible=False, axis="x")
    unit, name = _byte_unit(max(bar.total for bar in bars))
    places, place, before = [], 0.0, bars[0].group
    for bar in bars:
        place += 1.0 if bar.group == before else 1.5
        places.append(place)
        before = bar.group
    base = [0.0] * len(bars)
    for index, (part, words) in enumerate(PARTS.items()):
        sizes = [bar.parts.get(part, 0) / unit for bar in bars]
        if not any(sizes):
            continue
        axes.bar(
            places, sizes, 0.8, bottom=base, label=words, color=_COLOURS[index % len(_COLOURS)],
            hatch=_HATCHES[index % len(_HATCHES)], edgecolor="white", linewidth=0.5, alpha=0.9,
        )  # fmt: skip
        base = [b + s for b, s in zip(base, sizes, strict=True)]
    mixed = len({bar.measured for bar in bars}) > 1
    for bar, where, top in zip(bars, places, base, strict=True):
        axes.bar(
            where, top, 0.8, fill=False, edgecolor=BLACK, linewidth=1.6 if bar.measured else 0.6
        )
        kind = "\nmeasured" if bar.measured else "\npredicted"
        said = format_bytes(bar.total) + (kind if mixed else "")
        axes.annotate(said, (where, top), ha="center", va="bottom", fontsize=7,
                      textcoords="offset points", xytext=(0, 2))  # fmt: skip
    long = any(len(bar.label) > 12 for bar in bars)
    turned: Any = {"rotation": 30, "ha": "right"} if long and len(bars) > 6 else {}
    axes.set_xticks(places, [one_line(bar.label) for bar in bars], fontsize=7.5, **turned)
    heights = [bar.total / unit for bar in bars]
    if limit:
        heights.append(limit[1] / unit)
        axes.axhline(limit[1] / unit, color=RED, linestyle="--", linewidth=1.2)
        axes.annotate(
            f"{one_line(limit[0])}: {format_bytes(limit[1])}", (0.01, limit[1] / unit),
            xycoords=("axes fraction", "data"), fontsize=7.5, color=RED, va="bottom",
        )  # fmt: skip
    axes.set_ylim(0, 1.14 * max(heights))
    _group_names(axes, bars, places)
    axes.set_ylabel(f"allocated at the peak [{name}]")
    wide = int(11 * figure.get_figwidth())
    axes.set_title(textwrap.fill(one_line(title), wide), loc="left", fontsize=11)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], fontsize=7.5, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return figure


def _group_names(axes: Axes, bars: Sequence[MemoryBar], places: Sequence[float]) -> None:
    """Below its bars, what each group of phases is of, where there is more than one."""
    members: dict[str, list[float]] = {}
    for bar, place in zip(bars, places, strict=True):
        members.setdefault(bar.group, []).append(place)
    if len(members) < 2 or len(members) == len(bars):
        return
    for group, mine in members.items():
        axes.annotate(
            textwrap.fill(one_line(group), 12 * len(mine)), (sum(mine) / len(mine), 0),
            xycoords=("data", "axes fraction"), xytext=(0, -24), textcoords="offset points",
            ha="center", va="top", fontsize=8,
        )  # fmt: skip


# --- reach ----------------------------------------------------------------------------------------

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


# --- coverage -------------------------------------------------------------------------------------


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


# --- history --------------------------------------------------------------------------------------


def history_figure(series: Sequence[Series], footer: str) -> Figure:
    """A figure of one or more cases over the stored runs: each run's value with its interval (the
    quartiles of its rounds), the level between steps, and where a step was found."""
    shown = series[:MOST_SERIES]
    if not shown:
        raise BenchError("no stored run has that figure")
    figure = new_figure(9.5, 0.8 + 2.3 * len(shown), footer)
    grid = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, one in zip(grid, shown, strict=True):
        _plain(axes)
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
        axes.set_title(one_line(one.case), loc="left", fontsize=8.5, pad=14)
    label = shown[0].label
    left = f" (the first {len(shown)} of {len(series)} cases)" if len(series) > len(shown) else ""
    figure.suptitle(f"{label} over the stored runs{left}", x=0.01, ha="left", fontsize=11)
    return figure
