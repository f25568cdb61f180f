"""Intervals: hand-computed values, properties, and how often they are right on simulated noise."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.statistics import (
    MINIMUM_LAUNCHES,
    MINIMUM_ROUNDS,
    Interval,
    RatioInterval,
    Summary,
    instability,
    kendall_tau,
    launch_interval,
    mean_interval,
    pareto_front,
    ratio_interval,
    student_quantile,
    summarize,
)

PROPERTY = settings(max_examples=40, derandomize=True, deadline=None, database=None)
ROUNDS = st.lists(st.floats(0.01, 100), min_size=MINIMUM_ROUNDS, max_size=12)
TRIALS, THRESHOLD = 50, 0.05


def test_summary_by_hand() -> None:
    summary = summarize([4.0, 1.0, 2.0, 3.0, 10.0])
    assert (summary.rounds, summary.median, summary.iqr) == (5, 3.0, 2.0)
    assert summarize([1.0, 2.0, 3.0, 4.0]).iqr == 1.5  # quartiles 1.75 and 3.25
    assert (summarize([7.0]).median, summarize([7.0]).iqr) == (7.0, 0.0)
    assert summarize([3.0, 1.0]) == Summary(2, 2.0, 1.0)
    with pytest.raises(ValueError, match=r"^no rounds to summarize$"):
        summarize([])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.06, 1.10, 1),
        (1.04, 1.20, 0),  # some of the interval is within the threshold
        (0.96, 1.04, 0),
        (0.90, 0.96, 0),
        (0.90, 0.95, -1),  # 1 / 1.05 = 0.952
        (1.05, 1.10, 0),  # exactly at the threshold is not beyond it
        (0.90, 1 / 1.05, 0),
    ],
)
def test_only_a_whole_interval_counts(low: float, high: float, expected: int) -> None:
    assert RatioInterval(1.0, low, high, 0.99).beyond(THRESHOLD) == expected


def test_equal_rounds_have_an_interval_of_no_width() -> None:
    found = ratio_interval([2.0] * 5, [3.0] * 5)
    assert found == RatioInterval(1.5, 1.5, 1.5, 0.99)
    assert ratio_interval([2.0] * 5, [3.0] * 5, confidence=0.5).confidence == 0.5


def test_the_same_seed_gives_the_same_interval() -> None:
    """By default the seed is 0; another one draws otherwise."""
    old, new = [float(n) for n in range(1, 30)], [n**1.5 for n in range(1, 30)]
    few = {"resamples": 50}
    assert ratio_interval(old, new, **few) == ratio_interval(old, new, seed=0, **few)
    assert ratio_interval(old, new, **few) != ratio_interval(old, new, seed=1, **few)


def test_a_lower_confidence_is_a_narrower_interval() -> None:
    rounds = [float(n) for n in range(1, 12)]
    half, most = (ratio_interval([1.0], rounds, confidence=c) for c in (0.5, 0.99))
    assert most.low < half.low < 6 < half.high < most.high


def test_what_has_no_ratio_is_an_error() -> None:
    said = "^a ratio needs rounds on both sides, each longer than zero seconds$"
    for baseline, contender in (([], [1.0]), ([1.0], []), ([0.0], [1.0]), ([1.0], [2.0, 0.0])):
        with pytest.raises(ValueError, match=said):
            ratio_interval(baseline, contender)


@PROPERTY
@given(ROUNDS, ROUNDS, st.randoms(use_true_random=False))
def test_interval_is_bracketed_repeatable_and_blind_to_order(
    old: list[float], new: list[float], shuffler: random.Random
) -> None:
    found = ratio_interval(old, new, resamples=500)
    assert min(new) / max(old) <= found.low * (1 + 1e-9)
    assert found.low <= found.high
    assert found.high <= max(new) / min(old) * (1 + 1e-9)
    shuffler.shuffle(old)
    assert ratio_interval(old, new, resamples=500) == found


@PROPERTY
@given(ROUNDS, ROUNDS, st.floats(0.1, 10))
def test_the_unit_of_time_does_not_matter(old: list[float], new: list[float], scale: float) -> None:
    found = ratio_interval(old, new, resamples=500)
    scaled = ratio_interval([x * scale for x in old], [x * scale for x in new], resamples=500)
    assert scaled.low == pytest.approx(found.low)
    assert scaled.high == pytest.approx(found.high)


# How many of the means of pairs lie outside Tukey's 99 % interval, on each side: the critical value
# of the Wilcoxon signed-rank test, two-sided 0.01 (its printed tables). Besides, by counting.
CRITICAL = {8: 0, 9: 1, 10: 3, 11: 5, 12: 7, 13: 9, 14: 12, 15: 15, 20: 37, 25: 68}


@pytest.mark.parametrize(("size", "left_out"), CRITICAL.items())
def test_launches_give_the_interval_of_the_signed_rank_test(size: int, left_out: int) -> None:
    source = random.Random(size)
    ratios = [source.lognormvariate(0, 0.1) for _ in range(size)]
    pairs = itertools.combinations_with_replacement(ratios, 2)
    means = sorted(math.sqrt(x * y) for x, y in pairs)
    found = launch_interval(ratios)
    assert found.low == pytest.approx(means[left_out])
    assert found.high == pytest.approx(means[-1 - left_out])
    assert math.log(found.ratio) == pytest.approx(statistics.median(map(math.log, means)))


@pytest.mark.parametrize("size", [8, 9, 10, 11, 12])
def test_critical_values_by_counting_signs(size: int) -> None:
    """A second way: the sums of ranks of every assignment of signs."""
    ranks = range(1, size + 1)
    sums = sorted(
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=size)
    )
    w = CRITICAL[size]
    assert (
        sum(s <= w for s in sums) / len(sums) <= 0.005 < sum(s <= w + 1 for s in sums) / len(sums)
    )


def test_too_few_launches_have_no_interval() -> None:
    assert launch_interval([1.0] * MINIMUM_LAUNCHES) == RatioInterval(1.0, 1.0, 1.0, 0.99)
    with pytest.raises(ValueError, match=r"^7 launches are too few for an interval at 99%$"):
        launch_interval([1.0] * (MINIMUM_LAUNCHES - 1))
    for ratios in ([], [1.0, 0.0] * 4):
        with pytest.raises(ValueError, match=r"^an interval needs ratios, each above zero$"):
            launch_interval(ratios)


# The same at 95 %: the printed critical values of the signed-rank test, two-sided 0.05.
@pytest.mark.parametrize(("size", "left_out"), {6: 0, 7: 2, 8: 3, 9: 5, 10: 8, 12: 13}.items())
def test_launches_at_another_confidence(size: int, left_out: int) -> None:
    ratios = [1.1**n for n in range(size)]
    means = sorted((x + y) / 2 for x in range(size) for y in range(x, size))
    found = launch_interval(ratios, confidence=0.95)
    assert math.log(found.low, 1.1) == pytest.approx(means[left_out])
    assert math.log(found.high, 1.1) == pytest.approx(means[-1 - left_out])
    assert found.confidence == 0.95


def test_the_chance_may_be_all_that_is_left() -> None:
    """Eight ratios on one side are 2 chances in 256, which is as much as is allowed here."""
    found = launch_interval([2.0**n for n in range(8)], confidence=1 - 2 / 256)
    assert (found.low, found.high) == pytest.approx((1, 128))


@PROPERTY
@given(st.lists(st.floats(0.1, 10), min_size=MINIMUM_LAUNCHES, max_size=24))
def test_swapping_the_sides_gives_the_reciprocals(ratios: list[float]) -> None:
    found, swapped = launch_interval(ratios), launch_interval([1 / x for x in ratios])
    assert found.low <= found.ratio <= found.high
    assert (swapped.low, swapped.ratio, swapped.high) == pytest.approx(
        (1 / found.high, 1 / found.ratio, 1 / found.low)
    )


def verdicts(
    factor: float, rounds: int, noise: Callable[[random.Random, int], list[float]]
) -> list[int]:
    source = random.Random(f"{factor} {rounds}")
    return [
        ratio_interval(noise(source, rounds), [x * factor for x in noise(source, rounds)]).beyond(
            THRESHOLD
        )
        for _ in range(TRIALS)
    ]


def busy(source: random.Random, rounds: int) -> list[float]:
    """A step of 0.8 s with 1.5 % of noise; one round in twelve up to half as long again."""
    return [
        0.8
        * source.lognormvariate(0, 0.015)
        * (1 + (source.random() < 1 / 12) * source.uniform(0, 0.5))
        for _ in range(rounds)
    ]


def very_busy(source: random.Random, rounds: int) -> list[float]:
    """10 % of noise: too much to judge 5 % by, and then nothing is to be claimed."""
    return [0.8 * source.lognormvariate(0, 0.10) for _ in range(rounds)]


@pytest.mark.parametrize("rounds", [MINIMUM_ROUNDS, 10, 20])
@pytest.mark.parametrize("noise", [busy, very_busy])
def test_the_same_thing_twice_gives_no_verdict(
    rounds: int, noise: Callable[[random.Random, int], list[float]]
) -> None:
    assert verdicts(1.0, rounds, noise).count(0) >= 49


def test_ten_percent_slower_is_caught_with_twenty_rounds() -> None:
    assert verdicts(1.10, 20, busy).count(1) >= 48
    assert verdicts(1 / 1.10, 20, busy).count(-1) >= 48


@pytest.mark.parametrize("rounds", [MINIMUM_ROUNDS, 20])
def test_three_percent_slower_is_within_the_threshold(rounds: int) -> None:
    assert verdicts(1.03, rounds, busy).count(1) <= 2


def test_processes_that_differ_are_no_verdict() -> None:
    """Each process is faster or slower by 3 % for as long as it lives: one launch, however many
    rounds it has, calls that a change; the interval over launches does not."""
    source = random.Random(7)
    alarms = caught = 0
    for _ in range(TRIALS):
        ratios = [source.lognormvariate(0, 0.03) for _ in range(16)]
        alarms += launch_interval(ratios).beyond(THRESHOLD) != 0
        caught += launch_interval([1.10 * x for x in ratios]).beyond(THRESHOLD) == 1
    assert alarms <= 1
    assert caught >= 48


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ([1.0, 1.01, 1.0, 0.99, 1.0, 1.0], ""),
        ([1.0, 1.0, 1.0, 1.0], "fewer than 5 rounds"),
        ([1.0, 1.3, 1.0, 1.3, 1.0, 1.3], "interquartile range over 10% of the median"),
        ([1.0, 1.0, 1.0, 1.06, 1.05, 1.06, 1.06, 1.12, 1.13], "drift of more than 10%"),
        ([1.13, 1.12, 1.06, 1.06, 1.05, 1.06, 1.0, 1.0, 1.0], "drift of more than 10%"),
        # Quartiles 9.5 and 10.5, first and last as far apart: a tenth of the median and no more.
        ([9.5, 9.0, 10.0, 11.0, 10.5], ""),
        ([9.5, 9.0, 10.0, 11.0, 10.6], "interquartile range over 10% of the median"),
        # The first of five alone, the first three of nine.
        ([10.0, 11.2, 11.1, 11.1, 11.2], "drift of more than 10% between the first and last"),
        ([10.0, 12.0, 12.0, 11.0, 11.0, 11.0, 10.5, 10.5, 10.5], "drift of more than 10%"),
        ([4.0] * 5, ""),
    ],
)
def test_instability_is_named(rounds: list[float], said: str) -> None:
    found = instability(rounds)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_the_tails_are_half_a_percent_each() -> None:
    """By hand, for eleven rounds 1 to 11: a resample's median is at most the k-th where six or more
    of eleven draws are. That is 0.02 % for k = 1, 0.72 % for 2 and 5.6 % for 3 (the binomial sum),
    so that half a percent ends at 2, and one percent would at 3; above alike."""
    chances = [
        sum(math.comb(11, n) * (k / 11) ** n * (1 - k / 11) ** (11 - n) for n in range(6, 12))
        for k in (1, 2, 3)
    ]
    assert chances[0] < 0.005 < chances[1] < 0.01 < chances[2]
    found = ratio_interval([1.0] * 11, [float(n) for n in range(1, 12)], resamples=100_000)
    assert (found.low, found.ratio, found.high) == (2, 6, 10)
    # At 98.2 % nine in a thousand are left out below, more than the seven for k = 2; a third of
    # what is left would be fewer.
    assert 0.018 / 3 < chances[1] < 0.018 / 2 < chances[2]
    narrower = ratio_interval(
        [1.0] * 11, [float(n) for n in range(1, 12)], confidence=0.982, resamples=100_000
    )
    assert (narrower.low, narrower.high) == (3, 9)


def test_the_front_by_hand() -> None:
    points = [(1.0, 9.0), (2.0, 5.0), (3.0, 5.0), (4.0, 4.0), (4.0, 4.0), (5.0, 6.0)]
    assert pareto_front(points) == [0, 1, 3, 4]  # (3, 5) loses to (2, 5); equal points both stay
    assert pareto_front([]) == []


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_a_sweep_finds(points: list[tuple[int, int]]) -> None:
    """Sorted by the first figure, a point is on the front if it lowers the best second so far."""
    best, swept = math.inf, set()
    for first in sorted({x for x, _ in points}):
        lowest = min(y for x, y in points if x == first)
        if lowest < best:
            best = lowest
            swept.add((first, lowest))
    assert {points[i] for i in pareto_front([tuple(map(float, p)) for p in points])} == swept


@pytest.mark.parametrize("figures", [1, 3])
def test_points_have_as_many_figures(figures: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        pareto_front([(1.0, 2.0), (1.0,) * figures])


@pytest.mark.parametrize(
    ("low", "high", "sign", "within"),
    [
        (0.2, 0.3, 1, False),
        (0.1, 0.3, 0, False),  # at the margin is not beyond it
        (-0.3, -0.2, -1, False),
        (-0.3, -0.1, 0, False),
        (-0.1, 0.1, 0, True),  # and within it
        (-0.05, 0.2, 0, False),
        (-0.2, 0.05, 0, False),
        (-0.2, 0.2, 0, False),
    ],
)
def test_an_interval_against_a_margin(low: float, high: float, sign: int, within: bool) -> None:
    found = Interval(0.0, low, high)
    assert (found.beyond(0.1), found.within(0.1)) == (sign, within)


# Printed tables of Student's t, two-sided.
STUDENT = [
    (1, 0.50, 1.000), (4, 0.50, 0.741), (10, 0.50, 0.700), (1, 0.95, 12.706), (2, 0.95, 4.303),
    (3, 0.95, 3.182), (4, 0.95, 2.776), (5, 0.95, 2.571), (8, 0.95, 2.306), (30, 0.95, 2.042),
    (1, 0.99, 63.657), (2, 0.99, 9.925), (3, 0.99, 5.841), (4, 0.99, 4.604), (9, 0.99, 3.250),
    (20, 0.99, 2.845),
]  # fmt: skip


@pytest.mark.parametrize(("freedom", "confidence", "t"), STUDENT)
def test_students_quantile_is_that_of_the_tables(freedom: int, confidence: float, t: float) -> None:
    assert student_quantile(freedom, confidence) == pytest.approx(t, abs=6e-4)


def test_a_mean_has_its_interval() -> None:
    """Of 1 to 5: mean 3, deviation √2.5, so ± t · √2.5 / √5; of 0 and 2 it is 1 ± t."""
    for options, t in (({"confidence": 0.95}, 2.776), ({}, 4.604)):
        found = mean_interval([1, 2, 3, 4, 5], **options)
        half = t * math.sqrt(0.5)
        assert (found.mean, found.low, found.high) == pytest.approx(
            (3, 3 - half, 3 + half), abs=1e-3
        )
    assert mean_interval([0, 2], confidence=0.5).high == pytest.approx(2)
    with pytest.raises(ValueError, match=r"^an interval needs at least two values$"):
        mean_interval([1])


def test_kendalls_tau() -> None:
    """By hand: of six pairs one is reversed; ties count in neither."""
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert kendall_tau([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]) == -1
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(2 * 3))
    assert kendall_tau([1, 2, 3], [1, 1, 2]) == pytest.approx(2 / math.sqrt(2 * 3))
    assert math.isnan(kendall_tau([1, 1], [1, 2]))
    with pytest.raises(ValueError, match="zip"):
        kendall_tau([1, 2], [1, 2, 3])
