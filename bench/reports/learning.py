"""What a learning run says: the ranking, the claims, and loss against what it costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.learning.claims import DOES_NOT, HOLDS, Ruling, rulings
from bench.learning.ranking import (
    LOSS_CONFIDENCE,
    Place,
    Ranking,
    common_seeds,
    interval_of,
    ranking,
    tau_between_runs,
)
from bench.learning.records import Shown, shown_in
from bench.learning.signal import against
from bench.learning.stored import read_norms
from bench.reports.layout import BAD, EMPTY, GOOD, NOTED, Report, Table
from bench.reports.plots.learning import LossPoint
from bench.reports.tables import describe
from bench.units import counted, format_bytes, format_count, format_seconds

if TYPE_CHECKING:
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
    claimed = rulings(said.claims, said.margin, shown)
    if claimed:
        tables.append(_claims_table(claimed))
    notes += [f"{name} is also {', '.join(also)} on this model." for name, also in
              said.stands_for.items() if name in shown]  # fmt: skip
    notes += _signal_said(run, shown)
    notes += published_said(said, shown)
    if other is not None:
        notes.append(agreement_said(run, other))
    notes.append(
        f"Loss: evaluation, nats, mean over seeds with its {LOSS_CONFIDENCE:.0%} interval; above "
        "the best: seed by seed. Drift: what happened to text of another kind (docs/learning.md). "
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
    peak = _peak(place)
    return (
        arm.name, arm.ranks or EMPTY, format_count(arm.trainable), _spread(place.loss),
        EMPTY if place.gap is None else _spread(place.gap),
        f"{fits[0].rate:g}",
        f"{statistics.fmean(drifts):.3f}" if drifts else EMPTY,
        format_bytes(peak) if peak else EMPTY,
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


def _claims_table(claimed: Sequence[Ruling]) -> Table:
    rows = tuple(
        (one.verdict, one.claim.says, "; ".join(one.evidence), str(one.seeds), one.claim.source)
        for one in claimed
    )
    header = ("verdict", "claim", "evidence", "seeds", "claimed by")
    styles = tuple(_STYLES.get(one.verdict, NOTED) for one in claimed)
    return Table("claims", header, rows, leading=2, right=frozenset({"seeds"}), styles=styles)


def signal_said(norms: Mapping[str, float]) -> str:
    """A probe in words, with how well the same foretold the rankings of the stored runs."""
    from bench.baselines import load_stored
    from bench.files import RESULTS
    from bench.learning.study import studies

    told = f"Probe: the gradient's norm before training by role is {_norms_said(norms)}."
    for name in studies():
        folder = RESULTS / "learning" / name
        if any(folder.glob("*.json")):
            run = load_stored(folder)
            told += "".join(f" On {name}: {line}" for line in _signal_said(run, shown_in(run)))
    return f"{told} A large norm is no promise: see docs/learning.md."


def _norms_said(norms: Mapping[str, float]) -> str:
    return ", ".join(f"{r} {v:.3g}" for r, v in sorted(norms.items(), key=lambda i: -i[1]))


def _signal_said(run: StoredRun, shown: Mapping[str, Shown]) -> list[str]:
    norms = read_norms(run.options.get(PROBE), str(run.path or run.label), PROBE)
    mine = [one for one in shown.values() if one.arm.budget and not one.arm.shift
            and one.arm.precision == "fp32"]  # fmt: skip
    if not norms or len(mine) < 2:
        return []
    return [early_said(norms, mine)]


def early_said(norms: Mapping[str, float], arms: Sequence[Shown]) -> str:
    """How well the norms foretell the ranking of arms at one budget: two arms are in order or
    reversed, whatever foretells them, and say nothing."""
    found = against(norms, arms)
    told = f"Early signal: the gradient's norm before training by role is {_norms_said(norms)}. "
    if len(found.arms) < _FEWEST or math.isnan(found.tau):
        return (
            f"{told}Whether the ranking at one budget follows it cannot be said of "
            f"{counted(len(found.arms), 'arm')}."
        )
    alone = f"{found.single_tau:.2f} over those of one role alone"
    if found.singles < _FEWEST or math.isnan(found.single_tau):
        alone = f"and it cannot be said of the {found.singles} of one role alone"
    return (
        f"{told}Kendall's tau with the ranking at one budget: {found.tau:.2f} over "
        f"{len(found.arms)} arms, {alone}."
    )


_FEWEST = 3


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
        if len(seeds) < 2:
            continue
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
    """How far two runs agree, in the arms and seeds that both have."""
    ones, others = shown_in(run), shown_in(other)
    means: dict[str, tuple[float, float]] = {}
    for name in ones.keys() & others.keys():
        pair = [ones[name], others[name]]
        values = [[each.losses[s] for s in common_seeds(pair)] for each in pair]
        if values[0] and all(map(math.isfinite, [*values[0], *values[1]])):
            means[name] = statistics.fmean(values[0]), statistics.fmean(values[1])
    tau = tau_between_runs(*({n: pair[i] for n, pair in means.items()} for i in (0, 1)))
    largest = max((abs(a - b) for a, b in means.values()), default=math.nan)
    rates = sum(ones[n].rate != others[n].rate for n in means)
    what = "A second run, cut short," if other.interrupted else "A second complete run,"
    if not means:
        return f"{what} {other.label}, has no arm and seed in common with {run.label}."
    told = "cannot be said" if len(means) < _FEWEST or math.isnan(tau) else f"is {tau:.3f}"
    return (
        f"{what} {other.label}, against {run.label}: Kendall's tau of the mean losses of "
        f"{counted(len(means), 'arm')} {told}, the largest difference {largest:.2g} nats; "
        f"{rates or 'no'} rates differ."
    )


def cited() -> list[str]:
    """What the project's own stored runs say, a line a study, for whoever chooses modules; nothing
    where none is stored."""
    from bench.baselines import load_stored
    from bench.files import RESULTS
    from bench.learning.study import said_of, studies

    lines = []
    for name in studies():
        folder = RESULTS / "learning" / name
        if not any(folder.glob("*.json")):
            continue
        try:
            run = load_stored(folder)
        except BenchError:  # interrupted ones alone
            continue
        shown = shown_in(run)
        found = ranking(groups(shown).get("at one budget", []))
        if not found.places:
            continue
        order = ", ".join(f"{p.arm.name} {_spread(p.loss)}" for p in found.places)
        claimed = rulings(said_of(name).claims, said_of(name).margin, shown)
        verdicts = "; ".join(f"{one.claim.says}: {one.verdict}" for one in claimed)
        lines.append(
            f"Trained here ({name}, {found.places[0].arm.trainable:,} trainable parameters each, "
            f"loss in nats): {order}; tau between seeds {found.tau:.2f}. {verdicts} "
            f"(bench learn {name} --read)"
        )
    return lines


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
    for one in rulings(said.claims, said.margin, shown):
        yield {"kind": "claim", "claim": one.claim.name, "verdict": one.verdict,
               "evidence": list(one.evidence), "source": one.claim.source}  # fmt: skip


def learning_figure(run: StoredRun) -> Figure:
    """Loss against trainable parameters, peak memory and step time, of the arms in fp32 on plain
    text. Raises BenchError where there is none."""
    from bench.reports.plots.learning import loss_figure

    shown = [one for one in shown_in(run).values() if not one.arm.shift]
    places = ranking([one for one in shown if one.arm.precision == "fp32"]).places
    if not places:
        raise BenchError(f"{run.label}: no arm has a loss to plot")
    points = [
        LossPoint(
            place.arm.name, place.loss, place.arm.budget, place.arm.trainable, _peak(place),
            statistics.median(fit.step_seconds for fit in place.shown.fitted.values()),
        )
        for place in places
    ]  # fmt: skip
    study = run.options.get("study", run.label)
    return loss_figure(f"{study}: what each choice of modules learned", points, describe(run))


def _peak(place: Place) -> int | None:
    peaks = (fit.peak_allocated_bytes for fit in place.shown.fitted.values())
    return next((peak for peak in peaks if peak is not None), None)
