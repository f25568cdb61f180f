"""The end of a run is short, whatever happened, and what failed comes first."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from report_runs import run_of
from test_golden import measured

from bench.baselines import StoredRun, Verdict, compare, gate
from bench.reports.closing import MOST_LINES, closing

PLACES = ("stored run: results/x/0002_new.json", "page: report.html", "bench report 0002")
HERE = {"places": PLACES, "save_command": "pytest"}


def run(name: str, number: int, worse: int = 0) -> StoredRun:
    return run_of(
        *(measured(f"scenario-{n}", "fp32", 20 + n, 80 if n < worse else 40)
          for n in range(number)),
        name=name,
    )  # fmt: skip


@cache
def judged(number: int, worse: int) -> tuple[StoredRun, StoredRun, list[Verdict], list[Verdict]]:
    """Compared once for every width."""
    before, after = run("before", number), run("after", number, worse)
    verdicts = compare(before, after)
    return before, after, verdicts, gate(verdicts)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize(("number", "worse"), [(1, 0), (3, 2), (60, 5), (300, 200)])
def test_it_is_at_most_forty_lines(number: int, worse: int, width: int) -> None:
    before, after, verdicts, failing = judged(number, worse)
    text = closing(after, before, verdicts, failing, **HERE, width=width)
    assert len(text.splitlines()) <= MOST_LINES == 40
    assert ("FAILED" in text) == bool(worse)
    if width >= 80:
        assert all(place in text for place in PLACES)
        assert "fastest scenario-0 r8 fp32, 20.0 ms" in text


def test_what_failed_comes_first_and_what_was_left_out_is_counted() -> None:
    before, after = run("before", 60), run("after", 60, 50)
    verdicts = compare(before, after)
    text = closing(after, before, verdicts, gate(verdicts), **HERE, width=200)
    assert text.index("regressed") < text.index("fastest") < text.index("stored run")
    shown = text.count("\nregressed")
    assert shown >= 10
    left = f"{50 - shown} more lines: "
    assert f"{left}of a run that is stored (--benchmark-save=NAME) bench compare prints" in text
    kept = replace(after, path=Path("results/x/0002_new.json"))
    text = closing(kept, before, verdicts, gate(verdicts), **HERE, width=200)
    assert f"{left}bench compare prints them all." in text


def test_without_a_baseline_it_is_findings_and_places() -> None:
    text = closing(run("one", 2), None, (), (), **HERE)
    assert text.splitlines()[-3:] == list(PLACES)
    assert text.startswith("- opt")
