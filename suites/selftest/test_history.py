"""Steps in a figure over stored runs: by hand, and how often they are right on simulated noise."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from report_runs import case, run_of

from bench.baselines import StoredRun
from bench.baselines.history import find_steps, histories
from bench.errors import BenchError
from bench.reports.history import history_report
from bench.reports.layout import terminal


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


def of(processor: str, number: int, batch: int = 2) -> StoredRun:
    factor = 3 if processor == "Slow" or batch > 2 else 1
    metrics = {
        "trainable_parameters": 7,
        "peak_allocated_bytes": 1000 * (batch // 2),
        "peak_rss_bytes": 1000 * factor,
        "step_seconds": [factor * k / 10 for k in (1, 1.01, 1.02, 1.03, 1.04)],
    }
    detail = {"batch_size": batch, "seq_len": 64}
    record = case("opt", "fp32", metrics=metrics, detail=detail)
    return run_of(record, name=f"run{number}", processor=processor)


def test_another_machine_under_the_same_name_is_no_step() -> None:
    """What a verdict calls incomparable is two series, in turn or one after the other; what any
    machine may be compared in stays one."""
    for order in (("Fast",) * 3 + ("Slow",) * 3, ("Fast", "Slow") * 3):
        measured = [of(name, number) for number, name in enumerate(order)]
        for metric in ("step_seconds", "peak_rss_bytes"):
            first, second = histories(measured, metric)
            assert (first.steps, second.steps, first.apart) == ((), (), "")
            assert second.apart == "another machine: processor Fast -> Slow"
            assert [len(first.points), len(second.points)] == [3, 3]
            text = terminal(history_report((first, second), (), measured), width=400)
            assert "0 steps in 1 case" in text
            slow = [f"run{number}" for number, name in enumerate(order) if name == "Slow"]
            assert f"{', '.join(slow)}: not held against what came before: {second.apart}" in text
        for metric in ("peak_allocated_bytes", "trainable_parameters"):
            (whole,) = histories(measured, metric)
            assert len(whole.points) == 6
            assert not whole.apart


def test_a_step_on_one_of_two_machines_is_found() -> None:
    measured = [of(name, number) for number, name in enumerate(("Fast", "Other") * 3)]
    slower = [of("Fast", 6), of("Other", 7), of("Fast", 8), of("Other", 9)]
    doubled = [replace(run, records={key: replace(record, metrics={"step_seconds": (0.2,) * 5})
               for key, record in run.records.items()}) if run.machine.processor == "Other" else run
               for run in slower]  # fmt: skip
    stepped, level = histories([*measured, *doubled], "step_seconds")
    assert stepped.apart == "another machine: processor Fast -> Other"
    assert [step.between.partition(",")[0] for step in stepped.steps] == ["run5 and run7"]
    assert not level.steps


def test_another_workload_is_no_step() -> None:
    measured = [of("Fast", number, batch=2 if number < 3 else 8) for number in range(6)]
    for metric in ("step_seconds", "peak_allocated_bytes"):
        first, second = histories(measured, metric)
        assert (first.steps, second.steps) == ((), ())
        assert second.apart.startswith("another workload: ")


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
