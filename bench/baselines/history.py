"""A figure over every stored run of a machine: its values in order, and the steps in them.

A step is found as asv finds it (asv/step_detect.py, which derives it at length): the series is
approximated by pieces of constant level, the level a median, so that one bad run moves nothing;
more pieces always fit better, and are paid for. Here the price is Schwarz's: with absolute errors
as the misfit (a Laplace error of scale b), k pieces of n values cost

    2 n log(2 b) + 2 S / b + 2 k log(n),   S = sum |log value - level|,   b = max(S / n, floor)

and the cheapest k wins; for each k, dynamic programming finds the best places in O(k n^2).

    F. Friedrich, A. Kempe, V. Liebscher, G. Winkler, "Complexity penalized M-estimation: fast
    computation", J. Comput. Graph. Statist. 17 (2008) 201-224.
    G. Schwarz, "Estimating the dimension of a model", Ann. Statist. 6 (1978) 461-464.

The floor is a quarter of what the gate tolerates: a change that is no verdict is no step. One run
that differs and is gone in the next is an accident, no piece. The weak spot is the end of the
series: of the newest run alone nobody knows which of the two it is, so such a step is called
unconfirmed. Exact figures need no statistics: every change is a step.

Runs whose figures a verdict would call incomparable (another processor under one machine's name,
another batch) are no one series: each machine's, or workload's, is searched on its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from statistics import median

from bench.baselines.configuration import another_model
from bench.baselines.differences import version_changes
from bench.baselines.metrics import DEFAULT_THRESHOLDS, EXACT, Metric, metric_named
from bench.baselines.runs import StoredRun
from bench.baselines.verdicts import obstacle_to
from bench.errors import BenchError
from bench.statistics import summarize

MOST_STEPS = 8


@dataclass(frozen=True)
class Point:
    """A run's value (the median of its rounds), and the quartiles of the rounds around it."""

    run: str
    value: float
    low: float
    high: float
    commit: str | None = None


@dataclass(frozen=True)
class LevelStep:
    """A change of level that stays. index: the first point after it. ratio: after / before.

    between: the runs, and where known the commits, that the step lies between. changed: the
    libraries whose versions differ there, and whether it is another model. confirmed: more than
    one run stands behind it.
    """

    index: int
    before: float
    after: float
    worse: bool
    between: str
    changed: tuple[str, ...]
    confirmed: bool

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else math.inf


@dataclass(frozen=True)
class Series:
    """One case's figure over the runs that have it and may be compared, in order; levels: one a
    point. apart: why these are not compared with the case's first run; "" where they are."""

    case: str
    label: str
    unit: str
    points: tuple[Point, ...]
    levels: tuple[float, ...]
    steps: tuple[LevelStep, ...]
    apart: str = ""


def histories(runs: Sequence[StoredRun], metric: str, case: str = "*") -> list[Series]:
    """The metric's series of every case that fits the pattern, those with steps first; several of a
    case whose runs cannot all be compared.

    `runs` in order, of one folder. Raises BenchError for a metric that is not known or is text,
    and where no run has it.
    """
    named = metric_named(metric)
    if named.unit == "text":
        raise BenchError(f"{metric} is no number: it has no history to plot")
    found: dict[str, list[tuple[StoredRun, Point]]] = {}
    for run in runs:
        for record in run.records.values():
            value = record.metrics.get(metric)
            if value is not None and (fnmatchcase(record.id, case) or case in record.id):
                found.setdefault(record.id, []).append((run, _point(run, value)))
    if not found:
        raise BenchError(f"none of {len(runs)} stored runs has {metric} of a case like {case!r}")
    series = [
        replace(_series(case, named, points), apart=apart)
        for case, every in found.items()
        for apart, points in _comparable(case, named, every)
    ]
    return sorted(series, key=lambda one: -len(one.steps))


def _comparable(
    case: str, metric: Metric, found: Sequence[tuple[StoredRun, Point]]
) -> Iterator[tuple[str, list[tuple[StoredRun, Point]]]]:
    """The runs that may be compared with each other, with why they are not with the first."""
    groups: list[list[tuple[StoredRun, Point]]] = []

    def obstacle(old: StoredRun, new: StoredRun) -> str:
        before, after = old.records[case], new.records[case]
        return obstacle_to(metric, old.machine, new.machine, before, after)

    for run, point in found:
        for group in groups:
            if not obstacle(group[0][0], run):
                group.append((run, point))
                break
        else:
            groups.append([(run, point)])
    first = found[0][0]
    return ((obstacle(first, group[0][0]), group) for group in groups)


def _point(run: StoredRun, value: object) -> Point:
    if isinstance(value, tuple):
        summary = summarize(value)
        ordered = sorted(value)
        low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
        return Point(run.label, summary.median, low, high, run.commit)
    assert isinstance(value, int | float)
    return Point(run.label, value, value, value, run.commit)


def _series(case: str, metric: Metric, found: Sequence[tuple[StoredRun, Point]]) -> Series:
    values = [point.value for _, point in found]
    starts = (
        [i for i, value in enumerate(values) if i and value != values[i - 1]]
        if metric.kind == EXACT
        else find_steps(values, DEFAULT_THRESHOLDS[metric.kind])
    )
    bounds = [0, *starts, len(values)]
    levels: list[float] = []
    for start, end in pairwise(bounds):
        levels += [median(values[start:end])] * (end - start)
    steps = []
    for number, index in enumerate(starts, 1):
        before, after = levels[index - 1], levels[index]
        (old, _), (new, _) = found[index - 1], found[index]
        steps.append(
            LevelStep(
                index, before, after, (after > before) == metric.lower_is_better,
                _between(old, new), tuple(_changed(old, new, new.records[case].model)),
                metric.kind == EXACT or bounds[number + 1] - index > 1,
            )
        )  # fmt: skip
    return Series(
        case, metric.label, metric.unit, tuple(p for _, p in found), tuple(levels), tuple(steps)
    )


def _changed(old: StoredRun, new: StoredRun, model: str) -> list[str]:
    another = another_model(old, new, model)
    return [*([another] if another else []), *version_changes(old, new)]


def _between(old: StoredRun, new: StoredRun) -> str:
    commits = f", commits {old.commit} to {new.commit}" if old.commit and new.commit else ""
    return f"{old.label} and {new.label}{commits}"


def find_steps(values: Sequence[float], tolerated: float) -> list[int]:
    """Where new levels begin (indices, without 0). tolerated: a relative change that is no step."""
    if len(values) < 2 or min(values) <= 0:
        return []
    logs = [math.log(value) for value in values]
    costs = _segment_costs(logs)
    best: list[int] = []
    cheapest = math.inf
    for starts, misfit in _partitions(costs, len(logs)):
        scale = max(misfit / len(logs), tolerated / 4)
        price = 2 * len(logs) * math.log(2 * scale) + 2 * misfit / scale
        price += 2 * (len(starts) + 1) * math.log(len(logs))
        if price < cheapest - 1e-9:
            best, cheapest = starts, price
    return _beyond(logs, best, math.log1p(tolerated))


def _segment_costs(logs: Sequence[float]) -> Mapping[tuple[int, int], float]:
    """Sum of absolute deviations from the median, of every piece [start, end); a piece of one run
    is no piece, unless it is the newest."""
    costs = {}
    for start in range(len(logs)):
        for end in range(start + 1, len(logs) + 1):
            middle = median(logs[start:end])
            accident = end - start == 1 and 1 < end < len(logs)
            misfit = sum(abs(value - middle) for value in logs[start:end])
            costs[start, end] = math.inf if accident else misfit
    return costs


def _partitions(
    costs: Mapping[tuple[int, int], float], size: int
) -> Iterable[tuple[list[int], float]]:
    """The best partition into 1, 2, ... pieces: where the pieces after the first begin."""
    best: dict[int, tuple[list[int], float]] = {
        end: ([], costs[0, end]) for end in range(1, size + 1)
    }
    yield best[size]
    for pieces in range(2, min(MOST_STEPS + 1, size) + 1):
        further: dict[int, tuple[list[int], float]] = {}
        for end in range(pieces, size + 1):
            start = min(
                range(pieces - 1, end),
                key=lambda s: best[s][1] + costs[s, end] if s in best else math.inf,
            )
            further[end] = ([*best[start][0], start], best[start][1] + costs[start, end])
        best = further
        yield best[size]


def _beyond(logs: Sequence[float], starts: Sequence[int], least: float) -> list[int]:
    """Without the steps that are smaller than what is tolerated, the smallest dropped first."""
    kept = list(starts)
    while kept:
        bounds = [0, *kept, len(logs)]
        levels = [median(logs[a:b]) for a, b in pairwise(bounds)]
        sizes = [abs(new - old) for old, new in pairwise(levels)]
        smallest = min(range(len(sizes)), key=sizes.__getitem__)
        if sizes[smallest] > least:
            break
        del kept[smallest]
    return kept
