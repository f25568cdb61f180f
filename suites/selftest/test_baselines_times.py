"""Verdicts on times: how much slower, of how many rounds and launches, and which are not judged."""

from __future__ import annotations

from typing import Any

import pytest
from test_baselines import MIB, STEP, run_with
from verdict_edits import Edit, both, found, metric, only

from bench.baselines import (
    compare,
)


def slower(factor: float, rounds: int = 20) -> list[float]:
    return [factor * (0.8 + 0.001 * (i % 5)) for i in range(rounds)]


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.10, "regressed"), (1.03, None), (1.0, None), (0.97, None), (0.90, "improved")],
)
def test_time_verdicts(factor: float, verdict: str | None) -> None:
    verdicts = found(
        metric(STEP, "step_seconds", slower(factor)), metric(STEP, "step_seconds", slower(1))
    )
    assert [item.verdict for item in verdicts] == [verdict] * bool(verdict)
    for item in verdicts:
        assert item.interval is not None
        assert item.interval[0] <= factor <= item.interval[1]
        assert item.baseline == pytest.approx(0.802)
        assert item.threshold == 0.05


def test_a_median_beyond_the_threshold_is_not_enough() -> None:
    """The medians differ by 10 %, the rounds by far more: nothing can be said."""
    wide = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]
    base = metric(STEP, "step_seconds", wide)
    assert found(metric(STEP, "step_seconds", [1.1 * x for x in wide]), base) == []


@pytest.mark.parametrize(("old", "new"), [(4, 20), (20, 4), (1, 1)])
def test_too_few_rounds_say_nothing_but_that(old: int, new: int) -> None:
    baseline = run_with(metric(STEP, "step_seconds", slower(1, old)))
    contender = run_with(metric(STEP, "step_seconds", slower(10, new)))
    (verdict,) = [
        v for v in compare(baseline, contender) if (v.record, v.metric) == (STEP, "step_seconds")
    ]
    assert verdict.verdict == "unchanged"
    assert verdict.explanation == (
        f"not judged: too few rounds: {old} and {new}, and each side needs 5"
    )
    assert verdict.ratio == pytest.approx(10, rel=0.01)


def test_a_clock_that_did_not_move_says_nothing() -> None:
    assert found(metric(STEP, "step_seconds", [0.0] * 9)) == []


def together(factor: float, launches: object = 10, token: str = "one") -> Edit:
    """Rounds that vary by a factor of two, within each launch and not between launches."""

    def edit(body: dict[str, Any]) -> None:
        record = body["records"][STEP]
        times = [factor * (0.5 + 0.1 * i) for _ in range(10) for i in range(4)]
        record["metrics"]["step_seconds"] = times
        record["detail"] |= {"interleaved": token, "launches": launches}

    return edit


def test_rounds_of_launches_are_compared_side_by_side() -> None:
    verdict = only(together(1.1), together(1.0))
    assert verdict.verdict == "regressed"
    assert verdict.interval == pytest.approx((1.1, 1.1))
    assert found(together(1.1, token="two"), together(1.0)) == []  # not each other's rounds
    assert found(together(1.1, launches=5), together(1.0)) == []
    # Numbers that do not fit the rounds, in a stored run that somebody wrote.
    for strange in (0, -1, 7, "10", None, [10]):
        assert found(together(1.1, strange), together(1.0, strange)) == []


def test_too_few_launches_give_no_verdict() -> None:
    runs = (run_with(together(factor, launches=5)) for factor in (1.0, 2.0))
    (verdict,) = [v for v in compare(*runs) if (v.record, v.metric) == (STEP, "step_seconds")]
    assert (verdict.verdict, verdict.interval) == ("unchanged", None)
    assert verdict.explanation == "not judged: too few launches: 5, and it needs 8"


@pytest.mark.parametrize("side", ["baseline", "contender", "both"])
def test_unstable_times_are_not_judged(side: str) -> None:
    def unstable(body: dict[str, Any]) -> None:
        body["records"][STEP]["detail"]["unstable"] = "IQR 31 %"

    twice = metric(STEP, "step_seconds", slower(2))
    baseline = run_with(both() if side == "contender" else unstable)
    contender = run_with(twice if side == "baseline" else both(twice, unstable))
    verdicts = {(v.record, v.metric): v for v in compare(baseline, contender)}
    time = verdicts[STEP, "step_seconds"]
    assert (time.verdict, time.interval) == ("unchanged", None)
    assert time.explanation == "not judged: unstable measurement: IQR 31 %"
    assert time.ratio == pytest.approx(2, rel=0.01)
    # What does not depend on the clock is judged all the same.
    bytes_too = both(twice, unstable, metric(STEP, "peak_allocated_bytes", 900 * MIB))
    assert only(bytes_too).metric == "peak_allocated_bytes"


def test_launches_side_by_side_are_judged_though_their_rounds_spread() -> None:
    def unstable(body: dict[str, Any]) -> None:
        body["records"][STEP]["detail"]["unstable"] = "IQR 31 %"

    assert only(both(together(1.1), unstable), both(together(1.0), unstable)).ratio == (
        pytest.approx(1.1)
    )
