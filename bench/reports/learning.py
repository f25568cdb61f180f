"""What a learning run says: the ranking, the claims, and loss against what it costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.learning.claims import DOES_NOT, HOLDS, Finding, findings
from bench.learning.ranking import (
    CONFIDENCE,
    Place,
    Ranking,
    common_seeds,
    interval_of,
    ranking,
    tau_between_runs,
)
from bench.learning.records import Shown, shown_in
from bench.learning.signal import against
from bench.reports.layout import BAD, EMPTY, GOOD, NOTED, Report, Table
from bench.reports.tables import describe
from bench.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.baselines import StoredRun
    from bench.learning.study import Said
    from bench.statistics import Interval

_STYLES = {HOLDS: GOOD, DOES_NOT: BAD}
PROBE = "early_signal"
"""The key of the run's options that holds the gradient norms before training, by role."""
_HEADER = ("arm", "rank", "trainable", "loss", "above the best", "rate", "drift", "peak memory",
           "step", "seeds")  # fmt: skip


def groups(shown: Mapping[str, Shown]) -> dict[str, list[Shown]]:
    """The arms by what they can be compared with: those at one budget first."""
    found: dict[str, list[Shown]] = {}
    for one in shown.values():
        arm = one.arm
        shift = " on words never seen" if arm.shift else ""
        if arm.precision != "fp32":
            name = "in another precision, at the rate of fp32"
        elif arm.budget:
            name = f"at one budget{shift}"
        else:
            name = f"at their own size{shift}"
        found.setdefault(name, []).append(one)
    return dict(sorted(found.items(), key=lambda item: item[0] != "at one budget"))


def learning_report(run: StoredRun, said: Said, other: StoredRun | None = None) -> Report:
    """Ranking, claims, early signal, and the published claim; `other` is a second complete run."""
    shown = shown_in(run)
    tables, notes = [], []
    for name, mine in groups(shown).items():
        found = ranking(mine)
        tables.append(_table(name, found, mine))
        notes += _order_said(name, found)
    claimed = findings(said.claims, said.margin, shown)
    if claimed:
        tables.append(_claims_table(claimed))
    notes += [f"{name} is also {', '.join(also)} on this model." for name, also in
              said.stands_for.items() if name in shown]  # fmt: skip
    notes += _signal_said(run, shown)
    notes += published_said(said, shown)
    if other is not None:
        notes.append(agreement_said(run, other))
    notes.append(
        f"Loss: evaluation, nats, mean over seeds with its {CONFIDENCE:.0%} interval; above the "
        "best: seed by seed. Drift: what happened to text of another kind (docs/learning.md). "
        "Step: the processor's time of the median step, one thread, beside other processes. A "
        f"difference counts beyond {said.margin} nats."
    )
    return Report("Does it learn?", (describe(run),), tuple(tables), tuple(notes))


def _table(title: str, found: Ranking, shown: Sequence[Shown]) -> Table:
    rows = [_cells(place) for place in found.places]
    rows += [
        (one.arm.name, one.arm.ranks or EMPTY, format_count(one.arm.trainable), "diverged",
         *[EMPTY] * 5, str(len(one.fitted)))
        for one in shown if one.arm.name in found.left_out
    ]  # fmt: skip
    return Table(title, _HEADER, tuple(rows), right=frozenset(_HEADER[1:]))


def _cells(place: Place) -> tuple[str, ...]:
    one, arm = place.shown, place.arm
    fits = list(one.fitted.values())
    drifts = [fit.forgetting for fit in fits if fit.forgetting is not None]
    peaks = [fit.peak_allocated_bytes for fit in fits if fit.peak_allocated_bytes is not None]
    return (
        arm.name, arm.ranks or EMPTY, format_count(arm.trainable), _spread(place.loss),
        EMPTY if place.gap is None else _spread(place.gap),
        f"{fits[0].rate:g}",
        f"{statistics.fmean(drifts):.3f}" if drifts else EMPTY,
        format_bytes(peaks[0]) if peaks else EMPTY,
        format_seconds(statistics.median(fit.step_seconds for fit in fits)),
        str(len(fits)),
    )  # fmt: skip


def _spread(value: Interval) -> str:
    if math.isinf(value.low):
        return f"{value.mean:.3f}"
    return f"{value.mean:.3f} ± {value.high - value.mean:.3f}"


def _order_said(name: str, found: Ranking) -> list[str]:
    if len(found.places) < 3 or math.isnan(found.tau):
        return []
    told = "the order comes again from seed to seed" if found.believed else (
        "the order is not to be believed in detail: from seed to seed it changes"
    )  # fmt: skip
    return [f"Arms {name}: Kendall's tau between seeds {found.tau:.2f}: {told}."]


def _claims_table(claimed: Sequence[Finding]) -> Table:
    rows = tuple(
        (one.verdict, one.claim.says, "; ".join(one.evidence), str(one.seeds), one.claim.source)
        for one in claimed
    )
    header = ("verdict", "claim", "evidence", "seeds", "claimed by")
    styles = tuple(_STYLES.get(one.verdict, NOTED) for one in claimed)
    return Table("claims", header, rows, leading=2, right=frozenset({"seeds"}), styles=styles)


def _signal_said(run: StoredRun, shown: Mapping[str, Shown]) -> list[str]:
    norms = run.options.get(PROBE)
    mine = [one for one in shown.values() if one.arm.budget and not one.arm.shift
            and one.arm.precision == "fp32"]  # fmt: skip
    if not isinstance(norms, Mapping) or len(mine) < 2:
        return []
    found = against(norms, mine)
    order = ", ".join(f"{r} {v:.3g}" for r, v in sorted(norms.items(), key=lambda i: -i[1]))
    return [
        f"Early signal: the gradient's norm before training by role is {order}. Kendall's tau with "
        f"the ranking at one budget: {found.tau:.2f} over {len(found.arms)} arms, "
        f"{found.single_tau:.2f} over those of one role alone."
    ]


def published_said(said: Said, shown: Mapping[str, Shown]) -> list[str]:
    """Two sentences: the published comparison's best as it was compared, and at one budget."""
    lines = []
    for keys, how in (
        (("with", "without"), "As published, without a matched budget"),
        (("matched_with", "matched_without"), "At one budget of trainable parameters"),
    ):
        names = [said.published.get(key, "") for key in keys]
        if any(name not in shown or len(shown[name].losses) < 2 for name in names):
            continue
        one, other = (shown[name] for name in names)
        seeds = common_seeds([one, other])
        gap = interval_of([one.losses[s] - other.losses[s] for s in seeds])
        if not math.isfinite(gap.mean):
            continue
        sign = gap.beyond(said.margin)
        verdict = {-1: "lower", 1: "higher", 0: "not different beyond the margin"}[sign]
        lines.append(
            f"{how}, embeddings trained beside the adapters ({names[0]}, "
            f"{format_count(one.arm.trainable)} trainable) against the same without "
            f"({names[1]}, {format_count(other.arm.trainable)}): the loss is {verdict} "
            f"({gap.mean:+.3f} nats [{gap.low:+.3f}, {gap.high:+.3f}], {len(seeds)} seeds)."
        )
    return lines


def agreement_said(run: StoredRun, other: StoredRun) -> str:
    """How far two complete runs agree."""
    means = [
        {name: statistics.fmean(s.losses.values()) for name, s in shown_in(each).items()
         if s.losses and all(map(math.isfinite, s.losses.values()))}
        for each in (run, other)
    ]  # fmt: skip
    common = [name for name in means[0] if name in means[1]]
    largest = max((abs(means[0][n] - means[1][n]) for n in common), default=math.nan)
    return (
        f"Two complete runs, {run.label} and {other.label}: Kendall's tau of their "
        f"{len(common)} mean losses is {tau_between_runs(*means):.3f}, the largest difference "
        f"{largest:.2g} nats."
    )


def learning_json(run: StoredRun, said: Said) -> Iterator[dict[str, Any]]:
    """One object an arm, then one a claim."""
    shown = shown_in(run)
    for name, mine in groups(shown).items():
        found = ranking(mine)
        for number, place in enumerate(found.places, 1):
            yield {
                "kind": "arm", "group": name, "place": number, "arm": place.arm.name,
                "rank": place.arm.rank, "trainable_parameters": place.arm.trainable,
                "loss": place.loss.mean, "losses": place.shown.losses, "rate": place.shown.rate,
                "tau_between_seeds": None if math.isnan(found.tau) else found.tau,
            }  # fmt: skip
    for one in findings(said.claims, said.margin, shown):
        yield {"kind": "claim", "claim": one.claim.name, "verdict": one.verdict,
               "evidence": list(one.evidence), "source": one.claim.source}  # fmt: skip


# --- the picture ----------------------------------------------------------------------------------


def learning_figure(run: StoredRun) -> Figure:
    """Loss (nats) against trainable parameters, peak memory and step time: one point an arm, with
    the interval of its mean over seeds; arms at one budget filled."""
    from bench.reports.plots import BLUE, GREY, MIB, ORANGE, new_figure

    shown = [one for one in shown_in(run).values() if not one.arm.shift]
    shown = [one for one in shown if one.arm.precision == "fp32"]
    places = ranking(shown).places
    figure = new_figure(13, 5.5, describe(run))
    axes = figure.subplots(1, 3, sharey=True)
    seconds = {p.arm.name: statistics.median(f.step_seconds for f in p.shown.fitted.values())
               for p in places}  # fmt: skip
    peaks = {p.arm.name: f.peak_allocated_bytes for p in places
             for f in p.shown.fitted.values() if f.peak_allocated_bytes is not None}  # fmt: skip
    drawn = (
        ("trainable parameters", {p.arm.name: float(p.arm.trainable) for p in places}, True),
        ("peak memory of a step [MiB]", {n: peak / MIB for n, peak in peaks.items()}, False),
        ("step time, processor's [ms]", {n: 1e3 * value for n, value in seconds.items()}, False),
    )
    for panel, (label, values, logarithmic) in zip(axes, drawn, strict=True):
        _panel(panel, places, values, (BLUE, ORANGE, GREY))
        panel.set_xlabel(label)
        if logarithmic:
            panel.set_xscale("log")
    axes[0].set_ylabel("evaluation loss [nats]")
    axes[0].set_title("What each choice of modules learned", loc="left", fontsize=11)
    axes[0].legend(fontsize=8)
    return figure


def _panel(
    axes: Axes, places: Sequence[Place], values: Mapping[str, float], colours: tuple[str, ...]
) -> None:
    filled, hollow, line = colours
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    told = set()
    for place in places:
        if place.arm.name not in values:
            continue
        x, y = values[place.arm.name], place.loss
        matched = place.arm.budget
        label = "at one budget" if matched else "at its own size"
        half = y.high - y.mean if math.isfinite(y.high) else 0.0
        axes.errorbar(
            x, y.mean, yerr=half, fmt="o" if matched else "s", markersize=5, color=line,
            markerfacecolor=filled if matched else "white",
            markeredgecolor=filled if matched else hollow, elinewidth=0.7,
            label=None if label in told else label,
        )  # fmt: skip
        told.add(label)
        axes.annotate(
            place.arm.name, (x, y.mean), xytext=(5, 1), textcoords="offset points", fontsize=6
        )
