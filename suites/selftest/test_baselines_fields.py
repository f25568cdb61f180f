"""Verdicts with all of their fields, by hand."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
from test_baselines import MIB, QUERY, STEP, run_with
from verdict_edits import Edit, both, metric, outcome, peft

from bench.baselines import Thresholds, Verdict, compare

NOTHING = "nothing recorded explains it: same libraries, same roles"
TIMES, ALLOCATED, RSS, LOSS = (
    "step_seconds", "peak_allocated_bytes", "peak_rss_bytes", "evaluation_loss",
)  # fmt: skip
GIB = 1024**3


def same(body: dict[str, Any]) -> None:
    """No edit."""


def detail(record: str, **fields: Any) -> Edit:
    return lambda body: body["records"][record]["detail"].update(fields)


def without(record: str, *names: str) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        for name in names:
            del body["records"][record]["metrics"][name]

    return edit


def machine(**fields: Any) -> Edit:
    return lambda body: body["machine"].update(fields)


def times(seconds: float, rounds: int = 6) -> Edit:
    return metric(STEP, TIMES, [seconds] * rounds)


def launched(seconds: float, rounds: int, launches: Any, token: str = "one") -> Edit:
    return both(times(seconds, rounds), detail(STEP, interleaved=token, launches=launches))


def few(rounds: str) -> str:
    return f"not judged: too few rounds: {rounds}, and each side needs 5"


def losses(*values: float) -> Edit:
    return metric(STEP, LOSS, [*values])


# Before, after, and the one verdict on that case and metric.
WHOLE: dict[str, tuple[Edit, Edit, Verdict]] = {
    "equal": (same, same, Verdict(QUERY, "adapted_layers", "unchanged", 24, 24, 1.0)),
    "one-more": (
        same, metric(QUERY, "trainable_parameters", 786433),
        Verdict(QUERY, "trainable_parameters", "changed", 786432, 786433, 786433 / 786432,
                explanation=NOTHING),
    ),
    "text": (
        metric(QUERY, "ledger_digest", "a"), metric(QUERY, "ledger_digest", "b"),
        Verdict(QUERY, "ledger_digest", "changed", "a", "b", explanation=NOTHING),
    ),
    "equal-text": (
        metric(QUERY, "ledger_digest", "a"), metric(QUERY, "ledger_digest", "a"),
        Verdict(QUERY, "ledger_digest", "unchanged", "a", "a"),
    ),
    "more-memory": (
        same, both(metric(STEP, ALLOCATED, 1500 * MIB), peft("8")),
        Verdict(STEP, ALLOCATED, "regressed", 1000 * MIB, 1500 * MIB, 1.5, None, 0.01,
                "peft 0.21.2 -> 8"),
    ),
    "less-memory": (
        same, metric(STEP, ALLOCATED, 500 * MIB),
        Verdict(STEP, ALLOCATED, "improved", 1000 * MIB, 500 * MIB, 0.5, None, 0.01, NOTHING),
    ),
    "a-percent-more-memory": (
        metric(STEP, ALLOCATED, 100), both(metric(STEP, ALLOCATED, 101), peft("8")),
        Verdict(STEP, ALLOCATED, "unchanged", 100, 101, 1.01, None, 0.01),
    ),
    "memory-from-nothing": (
        metric(STEP, ALLOCATED, 0), metric(STEP, ALLOCATED, 1),
        Verdict(STEP, ALLOCATED, "regressed", 0, 1, math.inf, None, 0.01, NOTHING),
    ),
    "memory-to-nothing": (
        metric(STEP, ALLOCATED, 1), metric(STEP, ALLOCATED, 0),
        Verdict(STEP, ALLOCATED, "improved", 1, 0, 0.0, None, 0.01, NOTHING),
    ),
    "no-memory": (
        metric(STEP, ALLOCATED, 0), metric(STEP, ALLOCATED, 0),
        Verdict(STEP, ALLOCATED, "unchanged", 0, 0, 1.0, None, 0.01),
    ),
    "pages-of-files": (
        detail(STEP, file_pages_bytes=500 * MIB),
        both(detail(STEP, file_pages_bytes=800 * MIB), metric(STEP, RSS, 1800 * MIB)),
        Verdict(STEP, RSS, "unchanged", 1500 * MIB, 1800 * MIB, 1.2, None, 0.05,
                "only pages of files differ, as the page cache holds them"),
    ),
    "the-same-pages-of-files": (
        detail(STEP, file_pages_bytes=500 * MIB), detail(STEP, file_pages_bytes=500 * MIB),
        Verdict(STEP, RSS, "unchanged", 1500 * MIB, 1500 * MIB, 1.0, None, 0.05),
    ),
    "one-page-of-files": (
        both(detail(STEP, file_pages_bytes=1), metric(STEP, RSS, 100)),
        both(detail(STEP, file_pages_bytes=99), metric(STEP, RSS, 100)),
        Verdict(STEP, RSS, "improved", 100, 100, 1.0, None, 0.05,
                "without pages of files 99 B -> 1 B"),
    ),
    "nothing-but-pages-of-files": (
        both(detail(STEP, file_pages_bytes=100), metric(STEP, RSS, 100)),
        both(detail(STEP, file_pages_bytes=50), metric(STEP, RSS, 150)),
        Verdict(STEP, RSS, "regressed", 100, 150, 1.5, None, 0.05, NOTHING),
    ),
    "pages-and-more": (
        detail(STEP, file_pages_bytes=500 * MIB),
        both(detail(STEP, file_pages_bytes=500 * MIB), metric(STEP, RSS, 2500 * MIB)),
        Verdict(STEP, RSS, "regressed", 1500 * MIB, 2500 * MIB, 2500 / 1500, None, 0.05,
                f"without pages of files 1,000 MiB -> 1.953 GiB; {NOTHING}"),
    ),
    "slower": (
        times(0.5), times(1.0),
        Verdict(STEP, TIMES, "regressed", 0.5, 1.0, 2.0, (2.0, 2.0), 0.05, NOTHING),
    ),
    "faster": (
        times(1.0), times(0.5),
        Verdict(STEP, TIMES, "improved", 1.0, 0.5, 0.5, (0.5, 0.5), 0.05, NOTHING),
    ),
    "as-fast": (
        times(0.5), both(times(0.515625), peft("8")),
        Verdict(STEP, TIMES, "unchanged", 0.5, 0.515625, 1.03125, (1.03125, 1.03125), 0.05),
    ),
    "five-rounds": (
        times(0.5, 5), times(1.0, 5),
        Verdict(STEP, TIMES, "regressed", 0.5, 1.0, 2.0, (2.0, 2.0), 0.05, NOTHING),
    ),
    "four-rounds-before": (
        times(0.5, 4), times(1.0, 5),
        Verdict(STEP, TIMES, "unchanged", 0.5, 1.0, 2.0, None, 0.05, few("4 and 5")),
    ),
    "four-rounds-after": (
        times(0.5, 6), times(1.0, 4),
        Verdict(STEP, TIMES, "unchanged", 0.5, 1.0, 2.0, None, 0.05, few("6 and 4")),
    ),
    "no-time": (
        times(0.5), metric(STEP, TIMES, [1.0, 1.0, 1.0, 1.0, 0.0]),
        Verdict(STEP, TIMES, "unchanged", 0.5, 1.0, 2.0, None, 0.05,
                "not judged: too short for the clock: a round took no time"),
    ),
    "no-time-before": (
        metric(STEP, TIMES, [0.0] * 5), times(0.5),
        Verdict(STEP, TIMES, "unchanged", 0.0, 0.5, math.inf, None, 0.05,
                "not judged: too short for the clock: a round took no time"),
    ),
    "unstable": (
        both(times(0.5), detail(STEP, unstable="drift")), times(1.0),
        Verdict(STEP, TIMES, "unchanged", 0.5, 1.0, 2.0, None, 0.05,
                "not judged: unstable measurement: drift"),
    ),
    "eight-launches": (
        both(launched(0.5, 16, 8), detail(STEP, unstable="drift")), launched(1.0, 16, 8),
        Verdict(STEP, TIMES, "regressed", 0.5, 1.0, 2.0, (2.0, 2.0), 0.05, NOTHING),
    ),
    "seven-launches": (
        launched(0.5, 14, 7), launched(1.0, 14, 7),
        Verdict(STEP, TIMES, "unchanged", 0.5, 1.0, 2.0, None, 0.05,
                "not judged: too few launches: 7, and it needs 8"),
    ),
    "one-launch": (
        launched(0.5, 6, 1), launched(1.0, 6, 1),
        Verdict(STEP, TIMES, "unchanged", 0.5, 1.0, 2.0, None, 0.05,
                "not judged: too few launches: 1, and it needs 8"),
    ),
    # What is not from launches side by side is judged by its rounds.
    "launches-and-a-round-alone": (
        launched(0.5, 9, 4), launched(1.0, 9, 4),
        Verdict(STEP, TIMES, "regressed", 0.5, 1.0, 2.0, (2.0, 2.0), 0.05, NOTHING),
    ),
    "launches-of-odd-rounds": (
        launched(0.5, 12, 4), launched(1.0, 12, 4),
        Verdict(STEP, TIMES, "regressed", 0.5, 1.0, 2.0, (2.0, 2.0), 0.05, NOTHING),
    ),
    "launches-of-other-lengths": (
        launched(0.5, 8, 4), launched(1.0, 16, 4),
        Verdict(STEP, TIMES, "regressed", 0.5, 1.0, 2.0, (2.0, 2.0), 0.05, NOTHING),
    ),
    "launches-of-another-time": (
        launched(0.5, 8, 4, "one"), launched(1.0, 8, 4, "two"),
        Verdict(STEP, TIMES, "regressed", 0.5, 1.0, 2.0, (2.0, 2.0), 0.05, NOTHING),
    ),
    "launches-without-a-token": (
        launched(0.5, 8, 4, ""), launched(1.0, 8, 4, ""),
        Verdict(STEP, TIMES, "regressed", 0.5, 1.0, 2.0, (2.0, 2.0), 0.05, NOTHING),
    ),
    "other-launches": (
        launched(0.5, 8, 4), launched(1.0, 8, 2),
        Verdict(STEP, TIMES, "regressed", 0.5, 1.0, 2.0, (2.0, 2.0), 0.05, NOTHING),
    ),
    "loss-up": (
        losses(1.0, 1.25, 1.5), losses(1.5, 1.75, 2.0),
        Verdict(STEP, LOSS, "regressed", 1.25, 1.75, 1.4, (1.4, 1.4), 0.02, NOTHING),
    ),
    "loss-down": (
        losses(1.5, 1.75, 2.0), losses(1.0, 1.25, 1.5),
        Verdict(STEP, LOSS, "improved", 1.75, 1.25, 1.25 / 1.75, (1.25 / 1.75,) * 2, 0.02,
                NOTHING),
    ),
    "loss-alike": (
        losses(1.0, 1.25, 1.5), both(losses(1.0, 1.25, 1.5), peft("8")),
        Verdict(STEP, LOSS, "unchanged", 1.25, 1.25, 1.0, (1.0, 1.0), 0.02),
    ),
    "loss-of-two-seeds": (
        losses(1.0, 1.5), losses(2.0, 2.5),
        Verdict(STEP, LOSS, "unchanged", 1.25, 2.25, 1.8, None, 0.02,
                "not judged: too few seeds: 2 in both, and it needs 3"),
    ),
    "loss-on-another-machine": (
        losses(1.0, 1.25, 1.5), both(losses(1.5, 1.75, 2.0), machine(id="other", threads=9)),
        Verdict(STEP, LOSS, "regressed", 1.25, 1.75, 1.4, (1.4, 1.4), 0.02, NOTHING),
    ),
    "loss-of-another-batch": (
        losses(1.0, 1.25, 1.5), both(losses(1.5, 1.75, 2.0), detail(STEP, batch_size=4)),
        Verdict(STEP, LOSS, "incomparable", 1.25, 1.75,
                explanation="another workload: batch_size 2 -> 4"),
    ),
    "time-of-another-batch": (
        metric(STEP, TIMES, [0.1, 0.2, 0.9]), detail(STEP, batch_size=4),
        Verdict(STEP, TIMES, "incomparable", 0.2, 0.8,
                explanation="another workload: batch_size 2 -> 4"),
    ),
    "memory-on-another-machine": (
        same, both(machine(accelerator={"name": "GPU", "count": 2, "memory_bytes": GIB}),
                   metric(STEP, ALLOCATED, 1)),
        Verdict(STEP, ALLOCATED, "incomparable", 1000 * MIB, 1,
                explanation="another machine: accelerator none -> 2 x GPU (1.000 GiB)"),
    ),
    "new-figure": (
        same, metric(STEP, "forward_seconds", [0.1, 0.2, 0.9]),
        Verdict(STEP, "forward_seconds", "new", None, 0.2, explanation="not in the baseline"),
    ),
    "vanished-figure": (
        metric(STEP, TIMES, [0.1, 0.2, 0.9]), without(STEP, TIMES),
        Verdict(STEP, TIMES, "vanished", 0.2, explanation="not in this run"),
    ),
    "out-of-memory": (
        same, both(outcome(STEP, "oom"), peft("8")),
        Verdict(STEP, "outcome", "regressed", "ok", "oom", explanation="peft 0.21.2 -> 8"),
    ),
    "back-in-memory": (
        outcome(STEP, "oom"), same,
        Verdict(STEP, "outcome", "improved", "oom", "ok", explanation=NOTHING),
    ),
    "another-failure": (
        outcome(STEP, "crashed"), outcome(STEP, "oom"),
        Verdict(STEP, "outcome", "changed", "crashed", "oom", explanation=NOTHING),
    ),
    "the-same-failure": (
        outcome(STEP, "oom"), both(outcome(STEP, "oom"), peft("8")),
        Verdict(STEP, "outcome", "unchanged", "oom", "oom", explanation="oom on both sides"),
    ),
    "the-same-crash": (
        outcome(STEP, "crashed"), both(outcome(STEP, "crashed"), peft("8")),
        Verdict(STEP, "outcome", "broken", "crashed", "crashed",
                explanation="crashed on both sides"),
    ),
    "a-failure-elsewhere": (
        same, both(outcome(STEP, "timed-out"), machine(memory_bytes=4 * GIB, threads=9)),
        Verdict(STEP, "outcome", "incomparable", "ok", "timed-out",
                explanation="another machine: memory 8.000 GiB -> 4.000 GiB"),
    ),
    "a-failure-mended-elsewhere": (
        outcome(STEP, "oom"), machine(memory_bytes=16 * GIB),
        Verdict(STEP, "outcome", "incomparable", "oom", "ok",
                explanation="another machine: memory 8.000 GiB -> 16.00 GiB"),
    ),
    "a-crash-elsewhere": (
        same, both(outcome(STEP, "crashed"), machine(memory_bytes=4 * GIB)),
        Verdict(STEP, "outcome", "regressed", "ok", "crashed", explanation=NOTHING),
    ),
    "a-failure-with-other-threads": (
        same, both(outcome(STEP, "oom"), machine(threads=9)),
        Verdict(STEP, "outcome", "regressed", "ok", "oom", explanation=NOTHING),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after", "expected"), WHOLE.values(), ids=WHOLE)
def test_a_verdict_in_full(before: Edit, after: Edit, expected: Verdict) -> None:
    verdicts = compare(run_with(before), run_with(after))
    (found,) = [v for v in verdicts if (v.record, v.metric) == (expected.record, expected.metric)]
    for name, value in asdict(expected).items():
        told = getattr(found, name)
        assert told == (pytest.approx(value) if isinstance(value, float | tuple) else value), name


def test_what_failed_lacks_figures_and_the_others_are_compared() -> None:
    """The first of three figures is gone with the failure, which has a verdict of its own."""
    edit = both(outcome(STEP, "oom"), without(STEP, ALLOCATED), metric(STEP, RSS, 9 * GIB))
    verdicts = [v for v in compare(run_with(), run_with(edit)) if v.record == STEP]
    assert [(v.metric, v.verdict) for v in verdicts] == [("outcome", "regressed"),
                                                         (RSS, "regressed")]  # fmt: skip


def test_cases_that_came_and_went_in_full() -> None:
    """The renamed one is found behind another new one; the copy of a case that both runs have is
    no new name of it."""
    twin, name, other = (f"suites/test_steps.py::test_{n}[x]" for n in ("twin", "name", "other"))

    def before(body: dict[str, Any]) -> None:
        body["records"][twin] = dict(body["records"][QUERY])

    def after(body: dict[str, Any]) -> None:
        moved = body["records"].pop(STEP)
        body["records"][other] = {**moved, "rank": 4}
        body["records"][name] = moved

    verdicts = compare(run_with(before), run_with(after))
    assert [v for v in verdicts if v.metric == "case"] == [
        Verdict(STEP, "case", "vanished", explanation=(
            f"not in this run; renamed? the new {name} measures the same case")),
        Verdict(twin, "case", "vanished", explanation="in the baseline, not in this run"),
        Verdict(other, "case", "new", explanation="not in the baseline"),
        Verdict(name, "case", "new", explanation="not in the baseline"),
    ]  # fmt: skip


@pytest.mark.parametrize("field", ["suite", "model", "scenario", "rank", "precision"])
def test_a_case_with_another_fact_is_no_new_name(field: str) -> None:
    def after(body: dict[str, Any]) -> None:
        moved = body["records"].pop(STEP)
        body["records"]["new"] = {**moved, field: 9 if field == "rank" else "other"}

    gone, _ = (v for v in compare(run_with(), run_with(after)) if v.metric == "case")
    assert gone.explanation == "in the baseline, not in this run"


@pytest.mark.parametrize("name", [ALLOCATED, TIMES, LOSS])
def test_a_threshold_of_the_cases_scenario(name: str) -> None:
    """30 % more is within what its scenario tolerates, and not within another's."""
    values = {ALLOCATED: (100, 130), TIMES: ([1.0] * 5, [1.3] * 5), LOSS: ([1.0] * 3, [1.3] * 3)}
    before, after = (run_with(metric(STEP, name, value)) for value in values[name])
    for scenario, verdict, threshold in (("query", "unchanged", 0.5), ("key", "regressed", None)):
        thresholds = Thresholds().with_table({name: 0.5}, "here", scenario)
        found = compare(before, after, thresholds)
        (one,) = [v for v in found if (v.record, v.metric) == (STEP, name)]
        assert (one.verdict, threshold in (None, one.threshold)) == (verdict, True)
