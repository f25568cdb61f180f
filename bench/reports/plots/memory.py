"""What peaks are made of, predicted and measured."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.reports.plots.drawing import BLACK, HATCHES, PALETTE, RED, byte_unit, new_figure, plain
from bench.reports.predicted import PART_WORDS
from bench.units import format_bytes, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.measure import Measurement
    from bench.predict.gpus import Gpu
    from bench.predict.result import Prediction


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


def predictions_figure(
    found: Sequence[tuple[Prediction, Measurement | None]], gpu: Gpu | None = None
) -> Figure:
    """Predicted steps, each beside its measurement where there is one, and the memory of `gpu`: of
    one step every phase, of several their peaks."""
    first, seen = found[0]
    alone = len(found) == 1
    bars = [step_bar(p) for p, _ in found]
    if alone or any(measured for _, measured in found):
        bars = [bar for p, measured in found for bar in phase_bars(p, measured)]
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    kind = "predicted beside measured" if seen else "predicted"
    where = "in each phase of a step" if alone or seen else "at the peak"
    name = f"{first.case}: " if alone else f"{first.model}, {first.step}: "
    measured = "not measured"
    if seen:
        among = "its logits, loss and workspace are among the activations"
        measured = f"measured on {seen.device} ({among})"
    footer = f"predicted for {first.device}, {measured}; {versions}"
    limit = (gpu.name, gpu.memory_bytes) if gpu else None
    return memory_figure(f"{name}{kind} memory {where}", bars, footer, limit)


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
    plain(axes)
    axes.grid(visible=False, axis="x")
    unit, name = byte_unit(max(bar.total for bar in bars))
    places, place, before = [], 0.0, bars[0].group
    for bar in bars:
        place += 1.0 if bar.group == before else 1.5
        places.append(place)
        before = bar.group
    base = [0.0] * len(bars)
    for index, (part, words) in enumerate(PART_WORDS.items()):
        sizes = [bar.parts.get(part, 0) / unit for bar in bars]
        if not any(sizes):
            continue
        axes.bar(
            places, sizes, 0.8, bottom=base, label=words, color=PALETTE[index % len(PALETTE)],
            hatch=HATCHES[index % len(HATCHES)], edgecolor="white", linewidth=0.5, alpha=0.9,
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
