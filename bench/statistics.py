"""What rounds of timing can and cannot say.

A change of step time is claimed from an interval, never from two numbers: the confidence
interval of contender / baseline has to lie wholly beyond the threshold. The interval is a
bootstrap one, by the percentile method:

    B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap", Chapman & Hall 1993,
    chapter 13 (percentile intervals) and chapter 8 (two samples, resampled apart).

Medians, because a busy machine makes rounds late and never early; percentiles rather than BCa,
because BCa's acceleration comes from a jackknife, which is inconsistent for the median
(ibid., section 11.6). "The whole interval beyond a noise threshold" is how criterion.rs decides
(https://bheisler.github.io/criterion.rs/book/analysis.html).

The interval knows the noise within a process, not what differs between two processes of the same
code (where memory lies, another clock frequency, another neighbour on the machine), which more
rounds do not average out: A. Georges, D. Buytaert, L. Eeckhout, "Statistically Rigorous Java
Performance Evaluation", OOPSLA 2007; T. Kalibera, R. Jones, "Rigorous Benchmarking in Reasonable
Time", ISMM 2013. Where both sides were started several times side by side, each launch gives one
ratio, and the interval is the exact one of the Wilcoxon signed-rank test (`launch_interval`).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.99
"""Two-sided. A suite compares hundreds of figures at once, so 95 % would raise false alarms."""

RESAMPLES = 5000

MINIMUM_LAUNCHES = 8
"""Eight ratios that all lie on one side of a value are 2 chances in 256: 0.8 %, within CONFIDENCE;
of seven, 1.6 %."""

MINIMUM_ROUNDS = 5
"""On each side. Of two equal machines, 5 rounds all above the other's 5 are 1 chance in 252,
two-sided 0.8 %; with 4 rounds they are 2.9 %: more than CONFIDENCE leaves room for."""

NARROW = 0.02
"""Half the width of a median's interval, as a share of it: where those of two runs are as narrow,
their ratio is known within the 5 % that a change of time has to exceed."""


@dataclass(frozen=True)
class Summary:
    """Rounds in a few figures, in the unit of the rounds."""

    rounds: int
    median: float
    iqr: float


@dataclass(frozen=True)
class RatioInterval:
    """contender / baseline: the observed ratio, and its interval at `confidence`."""

    ratio: float
    low: float
    high: float
    confidence: float

    def beyond(self, threshold: float) -> int:
        """1 if the whole interval lies above 1 + threshold, -1 if wholly below 1 / (1 + threshold).

        The two bounds mirror each other, so that swapping the runs swaps the answer.
        """
        if self.low > 1 + threshold:
            return 1
        return -1 if self.high < 1 / (1 + threshold) else 0


def summarize(rounds: Sequence[float]) -> Summary:
    """Median and interquartile range; one round has a range of zero.

    Quartiles interpolate linearly between order statistics: type 7 of R. J. Hyndman, Y. Fan,
    "Sample Quantiles in Statistical Packages", The American Statistician 50, 1996.
    Raises ValueError without rounds.
    """
    if not rounds:
        raise ValueError("no rounds to summarize")
    iqr = 0.0
    if len(rounds) > 1:
        first, _, third = statistics.quantiles(rounds, n=4, method="inclusive")
        iqr = third - first
    return Summary(len(rounds), statistics.median(rounds), iqr)


def ratio_interval(
    baseline: Sequence[float],
    contender: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RatioInterval:
    """How much longer the contender takes: a percentile bootstrap interval of the ratio of the two
    medians, each sample resampled by itself; the order of the rounds does not matter.

    The same rounds and seed give the same interval. Raises ValueError for an empty sample or a
    round that is not above zero.
    """
    if not baseline or not contender or min(*baseline, *contender) <= 0:
        raise ValueError("a ratio needs rounds on both sides, each longer than zero seconds")
    import numpy as np

    random = np.random.default_rng(seed)

    def medians(values: Sequence[float]) -> np.ndarray[Any, Any]:
        sample = np.sort(np.asarray(values, dtype=float))
        drawn = random.integers(len(sample), size=(resamples, len(sample)))
        return np.asarray(np.median(sample[drawn], axis=1))

    ratio = statistics.median(contender) / statistics.median(baseline)
    spread = medians(contender) / medians(baseline)
    tail = (1 - confidence) / 2
    low, high = np.quantile(spread, [tail, 1 - tail])
    return RatioInterval(ratio, float(low), float(high), confidence)


def is_narrow(rounds: Sequence[float]) -> bool:
    """Whether more rounds are not needed: the interval of their median, by the same bootstrap, is
    narrow, and there are as many as a verdict needs.

    To stop by the width of an interval makes it a little too sure of itself (Y. S. Chow, H.
    Robbins, "On the asymptotic theory of fixed-width sequential confidence intervals", Annals of
    Mathematical Statistics 36, 1965); it is a stop for the worse against more rounds alone, and
    never against MINIMUM_ROUNDS.
    """
    if len(rounds) < MINIMUM_ROUNDS or min(rounds) <= 0:
        return False
    found = ratio_interval([statistics.median(rounds)], rounds)
    return found.high - found.low <= 2 * NARROW


def launch_interval(ratios: Sequence[float], *, confidence: float = CONFIDENCE) -> RatioInterval:
    """How much longer the contender takes, from the ratio that each launch of both sides gave.

    The estimate of Hodges and Lehmann (the median of the means of all pairs, each ratio with
    itself too) and Tukey's interval, which has at least `confidence` for any symmetric noise: M.
    Hollander, D. A. Wolfe, "Nonparametric Statistical Methods", 2nd edition, Wiley 1999, sections
    3.2 and 3.3. Of logarithms, so that swapping the sides gives the reciprocals.

    Raises ValueError for fewer than `MINIMUM_LAUNCHES` ratios (at the default confidence), or one
    that is not above zero.
    """
    if not ratios or min(ratios) <= 0:
        raise ValueError("an interval needs ratios, each above zero")
    left_out = _signed_rank_tail(len(ratios), (1 - confidence) / 2)
    if left_out < 0:
        raise ValueError(f"{len(ratios)} launches are too few for an interval at {confidence:.0%}")
    logs = sorted(map(math.log, ratios))
    means = sorted((x + y) / 2 for i, x in enumerate(logs) for y in logs[i:])
    low, high = means[left_out], means[-1 - left_out]
    middle = statistics.median(means)
    return RatioInterval(math.exp(middle), math.exp(low), math.exp(high), confidence)


def _signed_rank_tail(size: int, tail: float) -> int:
    """The largest w for which a sum of signed ranks of `size` values is at most w with a chance of
    at most `tail`; -1 where even 0 has more."""
    ways = [1]  # ways[w]: subsets of the ranks so far that sum to w
    for rank in range(1, size + 1):
        more = [0] * rank + ways
        ways = [below + (ways[w] if w < len(ways) else 0) for w, below in enumerate(more)]
    chance, w = 0.0, -1
    while (chance := chance + ways[w + 1] / 2**size) <= tail:
        w += 1
    return w


@dataclass(frozen=True)
class Interval:
    """The mean of some values, and its interval at a confidence, in the unit of the values."""

    mean: float
    low: float
    high: float

    def beyond(self, margin: float) -> int:
        """1 if the whole interval lies above `margin`, -1 if wholly below -margin, else 0."""
        return 1 if self.low > margin else -1 if self.high < -margin else 0

    def within(self, margin: float) -> bool:
        """Whether the whole interval lies within the margin on both sides."""
        return -margin <= self.low and self.high <= margin


def mean_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """The mean and Student's interval of it, which takes the values to be normal.

    Of differences by seed this is the paired test: zero (or a margin) outside the interval is a
    difference at that level. Five seeds are too few for a test by ranks or signs, whose least
    two-sided level is 2 in 32. Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("an interval needs at least two values")
    mean = statistics.fmean(values)
    half = student_quantile(len(values) - 1, confidence) * math.sqrt(
        statistics.variance(values, mean) / len(values)
    )
    return Interval(mean, mean - half, mean + half)


def student_quantile(freedom: int, confidence: float) -> float:
    """The t within which Student's variable lies with that probability, two-sided.

    By bisection of its distribution in closed form, for whole degrees of freedom: M. Abramowitz,
    I. A. Stegun, "Handbook of Mathematical Functions", 1964, 26.7.3 and 26.7.4.
    """

    def within(t: float) -> float:
        angle = math.atan(t / math.sqrt(freedom))
        sine, cosine = math.sin(angle), math.cos(angle)
        odd = freedom % 2
        term = cosine if odd else 1.0
        total = term if freedom > 1 else 0.0
        for k in range(2 + odd, freedom - 1, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + sine * total) if odd else sine * total

    low, high = 0.0, 1.0
    while within(high) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < confidence else (low, middle)
    return high


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> float:
    """How far two orders of the same things agree: 1 wholly, -1 reversed, about 0 by chance.

    M. G. Kendall, "A New Measure of Rank Correlation", Biometrika 30, 1938, with ties as in tau-b
    (Biometrika 33, 1945). NaN where one side is all alike. Raises ValueError for unequal lengths.
    """
    pairs = list(itertools.combinations(zip(one, other, strict=True), 2))
    signs = [(_sign(a - c), _sign(b - d)) for (a, b), (c, d) in pairs]
    agree = sum(x * y for x, y in signs)
    told = math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
    return agree / told if told else math.nan


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


UNSTABLE_SPREAD = 0.10
"""Share of the median: a wider interquartile range, or a larger drift, is called unstable."""


def instability(rounds: Sequence[float]) -> str:
    """Why the rounds (seconds) of one measurement are not to be trusted; "" if they are.

    Too few rounds for a verdict, an interquartile range over a tenth of the median, or a drift:
    the medians of the first and last third differ by more than that. The tenth is pyperf's rule
    for an unstable benchmark (https://pyperf.readthedocs.io, "Tune the system for benchmarks").
    """
    if len(rounds) < MINIMUM_ROUNDS:
        return f"fewer than {MINIMUM_ROUNDS} rounds"
    found = summarize(rounds)
    third = max(1, len(rounds) // 3)
    first, last = summarize(rounds[:third]).median, summarize(rounds[-third:]).median
    if found.iqr > UNSTABLE_SPREAD * found.median:
        return f"interquartile range over {UNSTABLE_SPREAD:.0%} of the median"
    if abs(last - first) > UNSTABLE_SPREAD * found.median:
        return f"drift of more than {UNSTABLE_SPREAD:.0%} between the first and last rounds"
    return ""


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other point beats, in order; less is better in every figure.

    A point is beaten by one that is nowhere worse and somewhere better; equal points both stay.
    """
    return [
        index
        for index, point in enumerate(points)
        if not any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True))
            for other in points
        )
    ]
