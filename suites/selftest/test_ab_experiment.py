"""The A/A experiment in small, and its stored results."""

from __future__ import annotations

import json

import pytest

from bench.ab.experiment import TARGETS, Comparison, compare_once, summarize
from bench.ab.rounds import CLOCKS
from bench.architectures import FIXTURES
from bench.measure import Session

STORED = sorted((FIXTURES.parent / "results" / "experiments").glob("side-by-side-*.json"))


@pytest.fixture(scope="module")
def session():
    with Session(device="cpu", preload=(*CLOCKS["processor"], "bench.ab.slower")) as opened:
        yield opened


def test_the_same_thing_twice(session: Session) -> None:
    found = compare_once(session, 0, (30, 120))
    assert set(found.verdicts) == {
        "step_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds",
    }  # fmt: skip
    assert found.verdicts["step_seconds"] == "unchanged"
    assert 0.85 < found.ratio < 1.15


def test_a_step_twice_as_long_is_caught(session: Session) -> None:
    found = compare_once(session, 100, (30, 60))
    assert set(found.verdicts.values()) == {"regressed"}
    assert 1.6 < found.ratio < 2.6


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
    assert summarize(runs)["0 %"]["met"]
    assert not summarize([*runs[1:], runs[-1]])["0 %"]["met"]


@pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])
def test_stored_results_follow_from_their_comparisons(path) -> None:
    document = json.loads(path.read_text())
    found = [
        Comparison(**{**each, "interval": tuple(each["interval"])})
        for each in document["comparisons"]
    ]
    assert json.loads(json.dumps(summarize(found))) == document["summary"]
    assert {int(name.split()[0]) for name in document["summary"]} == set(TARGETS)
    assert all(each["comparisons"] >= 50 for each in document["summary"].values())
