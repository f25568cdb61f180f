"""Two runs compared: one verdict per case and metric, and what the gate lets through.

What may be compared depends on the metric's kind:

- exact figures, everywhere;
- allocated memory, where the accelerator is the same. Without one it is counted tensor by tensor,
  which no CPU, thread count or allocator changes, so that two CPU machines compare;
- losses, everywhere, seed by seed: another machine's last digits are within the margin;
- reserved memory, RSS and time, on the same machine: its id, the processor's name, model and
  instruction sets, its cores and memory, the accelerator and its driver, the threads, and what a
  container leaves of all that.

Times that one process measured on each side are judged only where both measurements were stable
(`bench.statistics.instability`) and had the processor to themselves; those of many launches side by
side carry their noise in their interval.

A measured figure also needs the same batch size and sequence length, and any figure the same model:
of two that have one name in two places (`configuration.another_model`) none is compared, and no
figure that their weights decide (`configuration.other_weights`). No library
version makes figures incomparable: to compare across an upgrade is what the gate is for, and the
explanation names the versions that differ and can be the cause.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bench.baselines.configuration import another_model, in_two_places, in_words_of, other_weights
from bench.baselines.differences import differences, workload_change
from bench.baselines.losses import by_seed, compare_losses
from bench.baselines.machines import MACHINE, MEMORY, other_machine
from bench.baselines.metrics import ALLOCATED, EXACT, LOSS, METRICS, TIME, Metric, Thresholds
from bench.baselines.runs import FAILURES, OK, Record, Selection, StoredRun
from bench.statistics import MINIMUM_LAUNCHES, MINIMUM_ROUNDS, launch_interval, ratio_interval
from bench.training.machine import Machine
from bench.units import format_bytes, one_line

IMPROVED, UNCHANGED, REGRESSED, CHANGED = "improved", "unchanged", "regressed", "changed"
VANISHED, NEW, INCOMPARABLE, BROKEN = "vanished", "new", "incomparable", "broken"
FAILING = (REGRESSED, CHANGED, VANISHED, INCOMPARABLE, BROKEN)
VERDICTS = (*FAILING, IMPROVED, NEW, UNCHANGED)
"""All of them, the worst first. BROKEN: a case that failed, as it did before, or that is new."""

OWN = "own"
"""The scenario of a configuration that a user gave, whose rank is its own."""

CASE, OUTCOME = "case", "outcome"
"""What a verdict is about when it is not about one metric."""


@dataclass(frozen=True)
class Verdict:
    """What became of one metric of one case.

    baseline, contender: in the metric's unit, the median where there are rounds; None where that
    side has none. ratio: contender / baseline, for numbers. interval: of the ratio, for times.
    threshold: the fraction that was tolerated. explanation: why, or what to bear in mind.
    """

    record: str
    metric: str
    verdict: str
    baseline: float | str | None = None
    contender: float | str | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    threshold: float = 0.0
    explanation: str = ""

    @property
    def not_judged(self) -> bool:
        """Whether too little was measured to say what changed: no failure, so called unchanged."""
        return self.explanation.startswith("not judged: ")


def compare(
    baseline: StoredRun,
    contender: StoredRun,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 (frozen)
    selection: Selection | None = None,
) -> list[Verdict]:
    """Every verdict, in the baseline's order of cases, then the new ones.

    selection: what the contender was asked to run (by default what it recorded about itself).
    A case outside it did not vanish: it was not asked for, and has no verdict.
    """
    contender = in_words_of(baseline, contender)
    selection = contender.selection if selection is None else selection
    verdicts: list[Verdict] = []
    other_rank = _at_another_rank(baseline, contender, selection)
    for key, before in baseline.records.items():
        if after := contender.records.get(other_rank.get(key, key)):
            verdicts += _compare_records(baseline, contender, before, after, thresholds)
        elif selection.covers(key) and selection.asks_for(before):
            verdicts.append(
                Verdict(key, CASE, VANISHED, explanation=_whereabouts(before, baseline, contender))
            )
    verdicts += [
        _new(key, record)
        for key, record in contender.records.items()
        if key not in baseline.records and key not in other_rank.values()
    ]
    return verdicts


def _new(key: str, record: Record) -> Verdict:
    if record.outcome in FAILURES:
        why = _ended(record, "and not in the baseline")
        return Verdict(key, OUTCOME, BROKEN, contender=record.outcome, explanation=why)
    ended = "" if record.outcome == OK else f"; {record.outcome}"
    return Verdict(key, CASE, NEW, explanation=f"not in the baseline{ended}")


def _ended(record: Record, where: str) -> str:
    """How a case ended, and of what."""
    failure = record.detail.get("failure")
    said = f"{record.outcome} {where}"
    return one_line(f"{said}: {failure}" if failure else said)


def slower(baseline: StoredRun, machine: Machine, after: Record, thresholds: Thresholds) -> bool:
    """Whether a time of this record, measured on this machine, is regressed against the baseline's:
    to be measured once more before it is called so, in a process of its own."""
    before = baseline.records.get(after.id)
    if before is None:
        return False
    both = [name for name in after.metrics if name in before.metrics]
    return any(
        _compare_times(metric, before, after, thresholds, "").verdict == REGRESSED
        for metric in map(METRICS.__getitem__, both)
        if metric.kind == TIME and not obstacle_to(metric, baseline.machine, machine, before, after)
    )


def left_out(baseline: StoredRun, contender: StoredRun) -> list[str]:
    """The baseline's cases that the contender was not asked for: they have no verdict."""
    contender = in_words_of(baseline, contender)
    asked = contender.selection
    other_rank = _at_another_rank(baseline, contender, asked)
    return [
        key
        for key, record in baseline.records.items()
        if key not in contender.records
        and key not in other_rank
        and not (asked.covers(key) and asked.asks_for(record))
    ]


def _at_another_rank(
    baseline: StoredRun, contender: StoredRun, selection: Selection
) -> dict[str, str]:
    """Cases of a user's own configuration whose rank it was that changed, not the case: the id in
    the baseline and in the contender. Where --rank asked for another, it is another case."""
    if "rank" in selection.only:
        return {}

    def facts(record: Record) -> tuple[object, ...]:
        test = record.id.partition("[")[0]
        return (test, record.model, record.scenario, record.in_precision)

    def alone(run: StoredRun, other: StoredRun) -> dict[tuple[object, ...], str]:
        own = [r for k, r in run.records.items() if r.scenario == OWN and k not in other.records]
        return {
            facts(record): record.id
            for record in own
            if [facts(each) for each in own].count(facts(record)) == 1
        }

    gone, came = alone(baseline, contender), alone(contender, baseline)
    return {key: came[fact] for fact, key in gone.items() if fact in came}


def _whereabouts(gone: Record, baseline: StoredRun, contender: StoredRun) -> str:
    """Whether a new case measures what a vanished one did."""

    def facts(record: Record) -> tuple[object, ...]:
        return (record.suite, record.model, record.scenario, record.rank, record.in_precision)

    for key, record in contender.records.items():
        if key not in baseline.records and facts(record) == facts(gone):
            return f"not in this run; renamed? the new {key} measures the same case"
    return "in the baseline, not in this run"


def _compare_records(
    baseline: StoredRun, contender: StoredRun, before: Record, after: Record, thresholds: Thresholds
) -> Iterator[Verdict]:
    if another := another_model(baseline, contender, after.model):
        yield Verdict(before.id, CASE, INCOMPARABLE, explanation=another)
        return
    if {before.outcome, after.outcome} != {OK}:
        why = differences(baseline, contender, before, after)
        yield _compare_outcomes(baseline.machine, contender.machine, before, after, why)
    for name in [*before.metrics, *(name for name in after.metrics if name not in before.metrics)]:
        metric = METRICS[name]
        old, new = before.metrics.get(name), after.metrics.get(name)
        if (old is None or new is None) and before.outcome != after.outcome:
            continue  # a case that ended otherwise lacks figures: its outcome has a verdict
        why = differences(baseline, contender, before, after, metric)
        if old is None:
            yield Verdict(
                before.id, name, NEW, contender=_middle(new), explanation="not in the baseline"
            )
        elif obstacle := obstacle_to(metric, baseline.machine, contender.machine, before, after):
            yield Verdict(
                before.id, name, INCOMPARABLE, _middle(old), _middle(new), explanation=obstacle
            )
        elif new is None:
            yield Verdict(before.id, name, VANISHED, _middle(old), explanation="not in this run")
        else:
            found = _compare_figures(metric, before, after, thresholds, why)
            weights = other_weights(baseline, contender, before, after, metric)
            if weights and found.verdict != UNCHANGED:
                where = "another model of the same name, in another place"
                if in_two_places(baseline, contender, before, after):
                    found = replace(found, verdict=INCOMPARABLE, explanation=f"{where}: {weights}")
            yield found


def _compare_figures(
    metric: Metric, before: Record, after: Record, thresholds: Thresholds, why: str
) -> Verdict:
    if metric.kind == TIME:
        return _compare_times(metric, before, after, thresholds, why)
    if metric.kind == LOSS:
        return _compare_losses(metric, before, after, thresholds, why)
    return _compare_values(metric, before, after, thresholds, why)


def _compare_outcomes(
    old: Machine, new: Machine, before: Record, after: Record, why: str
) -> Verdict:
    """From ok: regressed; back to ok: improved; from one failure to another: changed; the same
    failure: broken (out of memory on both sides: unchanged)."""
    obstacle = other_machine(old, new, MEMORY)
    verdict, explanation = CHANGED, why
    if before.outcome == after.outcome:
        verdict = BROKEN if after.outcome in FAILURES else UNCHANGED
        explanation = _ended(after, "on both sides")
    elif {before.outcome, after.outcome} & {"oom", "timed-out"} and obstacle:
        verdict, explanation = INCOMPARABLE, obstacle
    elif before.outcome == OK:
        verdict = REGRESSED
    elif after.outcome == OK:
        verdict = IMPROVED
    return Verdict(
        before.id, OUTCOME, verdict, before.outcome, after.outcome, explanation=explanation
    )


def _compare_values(
    metric: Metric, before: Record, after: Record, thresholds: Thresholds, why: str
) -> Verdict:
    old, new = _middle(before.metrics[metric.name]), _middle(after.metrics[metric.name])
    ratio = _ratio(old, new)
    threshold = thresholds.of(metric, before.scenario)
    if metric.kind == EXACT:
        verdict = UNCHANGED if old == new else CHANGED
    else:
        assert ratio is not None  # only exact metrics are text
        verdict = _beyond(metric, ratio, threshold)
    explanation = "" if verdict == UNCHANGED else why
    if metric.name == "peak_rss_bytes":
        verdict, explanation = _judge_rss(metric, before, after, threshold, verdict, explanation)
    return Verdict(before.id, metric.name, verdict, old, new, ratio, None, threshold, explanation)


def _compare_times(
    metric: Metric, before: Record, after: Record, thresholds: Thresholds, why: str
) -> Verdict:
    old, new = _rounds(before, metric), _rounds(after, metric)
    threshold = thresholds.of(metric, before.scenario)
    middles = statistics.median(old), statistics.median(new)
    remark, interval, verdict, ratio = "", None, UNCHANGED, _ratio(*middles)
    unstable = before.detail.get("unstable") or after.detail.get("unstable")
    launches = _launches_together(before, after, len(old), len(new))
    if min(len(old), len(new)) < MINIMUM_ROUNDS:
        counts = f"{len(old)} and {len(new)}"
        remark = f"not judged: too few rounds: {counts}, and each side needs {MINIMUM_ROUNDS}"
    elif launches and launches < MINIMUM_LAUNCHES:
        remark = f"not judged: too few launches: {launches}, and it needs {MINIMUM_LAUNCHES}"
    elif min(*old, *new) <= 0:
        remark = "not judged: too short for the clock: a round took no time"
    elif unstable and not launches:  # an interval from within one process knows no such noise
        remark = f"not judged: unstable measurement: {unstable}"
    else:
        if launches:
            found = launch_interval(launch_ratios(old, new, launches))
        else:
            found = ratio_interval(old, new)
        interval, ratio = (found.low, found.high), found.ratio
        verdict = _direction(metric, found.beyond(threshold))
        remark = "" if verdict == UNCHANGED else why
        if verdict == REGRESSED and (last := after.detail.get("launch")):
            remark = f"slower still at launch {last}; {why}"
    return Verdict(before.id, metric.name, verdict, *middles, ratio, interval, threshold, remark)


def _compare_losses(
    metric: Metric, before: Record, after: Record, thresholds: Thresholds, why: str
) -> Verdict:
    threshold = thresholds.of(metric, before.scenario)
    found = compare_losses(by_seed(before, metric.name), by_seed(after, metric.name), threshold)
    verdict = _direction(metric, found.sign)
    return Verdict(
        before.id, metric.name, verdict, *found.means, _ratio(*found.means), found.interval,
        threshold, found.remark or ("" if verdict == UNCHANGED else why),
    )  # fmt: skip


def _launches_together(before: Record, after: Record, *rounds: int) -> int:
    """How often both sides were started to take their rounds in turn; 0 if they were not."""
    token, launches = before.detail.get("interleaved"), before.detail.get("launches")
    same = token == after.detail.get("interleaved") and launches == after.detail.get("launches")
    if not token or not same or not isinstance(launches, int) or launches < 1:
        return 0
    whole = len(set(rounds)) == 1 and rounds[0] % (2 * launches) == 0
    return launches if whole else 0


def launch_ratios(old: Sequence[float], new: Sequence[float], launches: int) -> list[float]:
    """contender / baseline in each launch: the median over its pairs of rounds (A B B A) added up.

    Whoever comes second in a pair comes first in the next: in a sum, what the order did cancels.
    Every launch has the same, even number of rounds.
    """
    before, after = ([x + y for x, y in zip(r[::2], r[1::2], strict=True)] for r in (old, new))
    ratios = [y / x for x, y in zip(before, after, strict=True)]
    size = len(ratios) // launches
    return [statistics.median(ratios[i : i + size]) for i in range(0, len(ratios), size)]


def _beyond(metric: Metric, ratio: float, threshold: float) -> str:
    return _direction(metric, (ratio > 1 + threshold) - (ratio < 1 / (1 + threshold)))


def _judge_rss(  # noqa: PLR0917
    metric: Metric, before: Record, after: Record, threshold: float, verdict: str, why: str
) -> tuple[str, str]:
    """The verdict without the pages of files, where both runs tell them: how many of a library's
    the kernel maps depends on its page cache, not on the code."""
    old, new = _private_peak(before), _private_peak(after)
    if not old or not new:
        return verdict, why
    own = _beyond(metric, new / old, threshold)
    if own != UNCHANGED:
        sizes = f"without pages of files {format_bytes(old)} -> {format_bytes(new)}"
        return own, f"{sizes}; {why}" if why else sizes
    return own, "only pages of files differ, as the page cache holds them" if why else ""


def _private_peak(record: Record) -> int | None:
    """The peak RSS without pages of files, in bytes; None where a stored run does not tell them."""
    peak, files = record.metrics["peak_rss_bytes"], record.detail.get("file_pages_bytes")
    if not isinstance(peak, int) or not isinstance(files, int) or not 0 < files < peak:
        return None
    return peak - files


def _direction(metric: Metric, sign: int) -> str:
    if sign == 0:
        return UNCHANGED
    return REGRESSED if (sign > 0) == metric.lower_is_better else IMPROVED


def _rounds(record: Record, metric: Metric) -> tuple[float, ...]:
    value = record.metrics[metric.name]
    assert isinstance(value, tuple)  # so load_run made every time
    return value


def _middle(value: float | str | tuple[float, ...] | None) -> float | str | None:
    return statistics.median(value) if isinstance(value, tuple) else value


def _ratio(old: float | str | None, new: float | str | None) -> float | None:
    if not isinstance(old, int | float) or not isinstance(new, int | float):
        return None
    if old == 0:
        return 1.0 if new == 0 else math.inf
    return new / old


def obstacle_to(metric: Metric, old: Machine, new: Machine, before: Record, after: Record) -> str:
    """Why two figures of this metric say nothing about each other; empty if they do."""
    if metric.kind == EXACT:
        return ""
    if workload := workload_change(before, after):
        return f"another workload: {workload}"
    if metric.kind == LOSS:
        return ""
    return other_machine(old, new, ("accelerator",) if metric.kind == ALLOCATED else MACHINE)
