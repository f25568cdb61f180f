"""The arms in the order of their losses, with intervals, and whether that order is to be believed.

Seeds differ more than arms do. So a place in the order says little by itself: the interval of a
mean over seeds says how wide it is, and Kendall's tau between the orders of two seeds (or two runs)
how much of the order comes again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from bench.learning.arms import Arm
from bench.learning.records import Shown
from bench.statistics import Interval, kendall_tau, mean_interval

LOSS_CONFIDENCE = 0.95
"""Of the intervals in the report: a reader compares few arms at a time."""
BELIEVED = 0.6
"""The mean tau between seeds from which an order is called one: of ten arms in two random orders,
one pair in a hundred agrees as well."""


@dataclass(frozen=True)
class Place:
    """One arm's place. loss: mean over its seeds in nats, with its interval; the seeds' own differ
    alike in all arms, so `gap`, from the best arm seed by seed, is told better."""

    arm: Arm
    shown: Shown
    loss: Interval
    gap: Interval | None


@dataclass(frozen=True)
class Ranking:
    """places: the best first. tau: the mean of Kendall's tau over all pairs of seeds, NaN for one
    seed. left_out: arms that diverged, or have no loss yet."""

    places: tuple[Place, ...]
    tau: float
    left_out: tuple[str, ...] = ()

    @property
    def believed(self) -> bool:
        return self.tau >= BELIEVED


def ranking(shown: Sequence[Shown]) -> Ranking:
    """The order of the arms by mean loss over the seeds that all of them have."""
    whole = [one for one in shown if one.losses and all(map(math.isfinite, one.losses.values()))]
    seeds = common_seeds(whole)
    left_out = tuple(one.arm.name for one in shown if one not in whole)
    if not whole or not seeds:
        return Ranking((), math.nan, left_out)

    def mean(one: Shown) -> float:
        return statistics.fmean(one.losses[s] for s in seeds)

    ordered = sorted(whole, key=mean)
    best = ordered[0]
    places = tuple(
        Place(
            one.arm, one, interval_of([one.losses[s] for s in seeds]),
            None if one is best else interval_of([one.losses[s] - best.losses[s] for s in seeds]),
        )
        for one in ordered
    )  # fmt: skip
    return Ranking(places, tau_between_seeds(whole), left_out)


def interval_of(values: Sequence[float]) -> Interval:
    """The mean with its interval; without one where there is one value alone."""
    if len(values) < 2:
        return Interval(values[0], -math.inf, math.inf)
    return mean_interval(values, confidence=LOSS_CONFIDENCE)


def common_seeds(shown: Sequence[Shown]) -> list[int]:
    """The seeds that every one of them has."""
    found = [set(one.losses) for one in shown]
    return sorted(set.intersection(*found)) if found else []


def tau_between_seeds(shown: Sequence[Shown]) -> float:
    """The mean of Kendall's tau over all pairs of seeds; NaN for fewer than two seeds or arms."""
    seeds = common_seeds(shown)
    orders = {seed: [one.losses[seed] for one in shown] for seed in seeds}
    taus = [kendall_tau(orders[a], orders[b]) for a, b in combinations(seeds, 2)]
    return statistics.fmean(taus) if taus and len(shown) > 1 else math.nan


def tau_between_runs(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Kendall's tau of the mean losses of the arms that two runs have in common."""
    names = [name for name in one if name in other]
    return kendall_tau([one[n] for n in names], [other[n] for n in names])
