"""Steps in a figure over stored runs: by hand, and how often they are right on simulated noise."""

from __future__ import annotations

import random

import pytest
from report_runs import case, run_of

from bench.baselines.history import find_steps, histories
from bench.errors import BenchError


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([1, 1, 1, 1, 1], []),
        ([1, 1, 1, 1.3, 1.3, 1.3], [3]),
        ([1, 1, 1, 1.3], [3]),  # the newest run alone
        ([1, 1.01, 0.99, 2, 1, 1, 1.01], []),  # an accident, gone in the next run
        ([1, 1, 1, 1.04, 1.04, 1.04], []),  # less than is tolerated
        ([2, 2, 2, 1, 1, 1, 2, 2, 2], [3, 6]),
        ([1], []),
        ([0, 0, 1], []),  # no ratio to zero
    ],
)
def test_steps_by_hand(values: list[float], steps: list[int]) -> None:
    assert find_steps(values, 0.05) == steps


def test_steps_in_noise() -> None:
    """Twenty runs with 2 % of noise: a change of 12 % is always seen, at most one run off its
    place; without a change few series have a step."""
    draw = random.Random(7)
    false = found = near = 0
    trials = 100
    for _ in range(trials):
        quiet = [1 + draw.gauss(0, 0.02) for _ in range(20)]
        false += bool(find_steps(quiet, 0.05))
        steps = find_steps([v * (1.12 if i >= 12 else 1) for i, v in enumerate(quiet)], 0.05)
        found += bool(steps)
        near += any(11 <= step <= 13 for step in steps)
    assert (found, near) == (trials, trials)
    assert false <= trials // 10


def runs(*peaks: int, rounds: float = 0.1) -> list:
    return [
        run_of(
            case("opt", "fp32", metrics={"peak_allocated_bytes": peak, "trainable_parameters": 7,
                                         "step_seconds": [rounds * k for k in (1, 2, 3, 4, 5)]}),
            name=f"run{number}",
        )
        for number, peak in enumerate(peaks)
    ]  # fmt: skip


def test_a_series_says_where_it_changed() -> None:
    (series,) = histories(runs(1000, 1000, 1500, 1500), "peak_allocated_bytes")
    assert [p.value for p in series.points] == [1000, 1000, 1500, 1500]
    (step,) = series.steps
    assert (step.index, step.before, step.after, step.ratio) == (2, 1000, 1500, 1.5)
    assert step.worse
    assert step.confirmed
    assert step.between.startswith("run1 and run2")
    (newest,) = histories(runs(1000, 1000, 1000, 500), "peak_allocated_bytes")
    assert not newest.steps[0].worse
    assert not newest.steps[0].confirmed


def test_a_time_has_the_quartiles_of_its_rounds() -> None:
    (series,) = histories(runs(1, 1), "step_seconds")
    point = series.points[0]
    assert (point.low, point.value, point.high) == pytest.approx((0.2, 0.3, 0.4))


def test_every_change_of_an_exact_figure_is_a_step() -> None:
    changed = runs(1, 1)
    changed.append(run_of(case("opt", "fp32", metrics={"trainable_parameters": 8}), name="run2"))
    (series,) = histories(changed, "trainable_parameters")
    assert [(s.index, s.confirmed) for s in series.steps] == [(2, True)]


@pytest.mark.parametrize(
    ("metric", "pattern", "said"),
    [
        ("peak_memory", "*", "unknown metric"),
        ("ledger_digest", "*", "no number"),
        ("step_seconds", "llama", "none of 1 stored runs"),
    ],
)
def test_what_has_no_history(metric: str, pattern: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        histories(runs(1), metric, pattern)
