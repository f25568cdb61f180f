"""The A/A experiment in small, and its stored results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm import Warm

from bench.ab.experiment import TARGETS, Comparison, compare_once, tally
from bench.files import RESULTS
from bench.measure import Session

TIMES = ("step_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds")
STORED = sorted((RESULTS / "experiments").glob("side-by-side-*.json"))


@pytest.fixture(scope="module")
def steady(warm_process: Warm) -> Iterator[Session]:
    """Real workers and steps, timed by a clock that no other work on the machine disturbs."""
    with pytest.MonkeyPatch.context() as patch, warm_process.in_place():
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        preload = ("steady_time", "bench.ab.slower")
        with Session(device="cpu", preload=preload, clock="processor") as opened:
            yield opened


@pytest.mark.parametrize(
    ("slowdown", "expected"),
    [
        (0, "unchanged"),
        pytest.param(3, "unchanged", marks=pytest.mark.evidence),
        pytest.param(10, "regressed", marks=pytest.mark.evidence),
    ],
)
def test_a_comparison_is_right(steady: Session, slowdown: int, expected: str) -> None:
    found = compare_once(steady, slowdown, 4, (8, 10))
    assert found.verdicts == dict.fromkeys(TIMES, expected)
    assert found.right
    # A phase spreads by 1 %, so the ratio of two medians of 30 steps by 0.2 %.
    assert found.ratio == pytest.approx(1 + slowdown / 100, abs=0.006)
    low, high = found.interval
    assert low < found.ratio < high
    assert low != high


def test_steps_really_take_longer(warm: Warm) -> None:
    """On the processor's clock, ten times as long; the margin is for a busy machine."""
    with Session(device="cpu", preload=("bench.ab.slower",), clock="processor") as session:
        found = compare_once(session, 900, 4, (8, 8))
    assert found.ratio > 3
    assert found.verdicts["step_seconds"] == "regressed"


def _found(slowdown: int, **verdicts: str) -> Comparison:
    names = ("step_seconds", "forward_seconds")
    named = {name: verdicts.get(name, "unchanged") for name in names}
    return Comparison(slowdown, named, 1.0, (0.9, 1.1), 60, 1.0, 0.5)


def test_what_counts_as_right() -> None:
    assert _found(0).right
    assert not _found(0, forward_seconds="improved").right
    assert _found(10, step_seconds="regressed").right
    assert not _found(10).right
    assert _found(3, forward_seconds="regressed").right
    assert not _found(3, step_seconds="regressed").right
    runs = [_found(0)] * 49 + [_found(0, step_seconds="regressed")]
    assert tally(runs)["0 %"]["met"]
    assert not tally([*runs[1:], runs[-1]])["0 %"]["met"]


@pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])
def test_stored_results_follow_from_their_comparisons(path) -> None:
    document = json.loads(path.read_text())
    found = [
        Comparison(**{**each, "interval": tuple(each["interval"])})
        for each in document["comparisons"]
    ]
    assert json.loads(json.dumps(tally(found))) == document["summary"]
    assert {int(name.split()[0]) for name in document["summary"]} == set(TARGETS)
    assert all(each["comparisons"] >= 50 for each in document["summary"].values())
