"""Losses of two runs compared, seed by seed: has more moved than the seeds explain?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from bench.baselines.runs import Record
from bench.statistics import mean_interval

MINIMUM_SEEDS = 3
"""Both runs' seeds that a verdict on a loss needs."""


@dataclass(frozen=True)
class Moved:
    """means: of the baseline and of the contender (nats). sign: 1 where the loss has risen, -1
    where it has fallen, 0 where neither can be said. interval: of the ratio of the means."""

    means: tuple[float, float]
    sign: int = 0
    interval: tuple[float, float] | None = None
    remark: str = ""


def by_seed(record: Record, name: str) -> dict[int, float]:
    """The losses by their seed: as the record tells, else counted from 0."""
    values = record.metrics[name]
    assert isinstance(values, tuple)  # so load_run made every loss
    told = record.detail.get("seeds")
    seeds = told if isinstance(told, list) and len(told) == len(values) else range(len(values))
    return dict(zip(seeds, values, strict=True))


def compare_losses(old: Mapping[int, float], new: Mapping[int, float], threshold: float) -> Moved:
    """By the differences of the seeds that both have; threshold: a share of the baseline's mean.

    A loss has moved where the interval of the differences lies wholly beyond the threshold, or
    where its mean lies so far outside all of the baseline's seeds: a fault may act on each seed
    in another way, and leave the interval wide.
    """
    seeds = [seed for seed in old if seed in new]
    if len(seeds) < MINIMUM_SEEDS:
        remark = f"not judged: too few seeds: {len(seeds)} in both, and it needs {MINIMUM_SEEDS}"
        return Moved(
            (statistics.fmean(old.values()), statistics.fmean(new.values())), 0, None, remark
        )
    before, after = [old[s] for s in seeds], [new[s] for s in seeds]
    means = statistics.fmean(before), statistics.fmean(after)
    margin = threshold * means[0]
    found = mean_interval([n - o for o, n in zip(before, after, strict=True)])
    outside = (means[1] > max(before) + margin) - (means[1] < min(before) - margin)
    interval = (1 + found.low / means[0], 1 + found.high / means[0]) if means[0] else None
    return Moved(means, found.beyond(margin) or outside, interval)
