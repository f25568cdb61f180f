"""Each format of the tables, whole: a change of what people paste into papers and pull requests is
seen and meant. `pytest suites/selftest/test_golden.py --snapshot-update` accepts one."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import pytest
from report_runs import case, run_of
from test_baselines import MIB

from bench.baselines import StoredRun, compare, gate
from bench.cli.output import csv_text, json_lines
from bench.reports import (
    HEADERS,
    comparison_report,
    comparison_rows,
    comparison_table,
    latex,
    markdown,
)
from bench.reports import terminal as in_terminal
from bench.reports.comment import MARKER, VISIBLE_LINES, comment
from bench.reports.paper import paper
from bench.reports.verdicts import verdict_report

pytest.importorskip("syrupy", reason="pip install 'lora-target-bench[suites]'")


def measured(scenario: str, precision: str, ms: float, mib: float, **more: Any) -> dict[str, Any]:
    metrics = {
        "step_seconds": [ms / 1e3, ms / 1e3, ms * 1.02 / 1e3, ms * 0.99 / 1e3, ms * 1.01 / 1e3],
        "peak_allocated_bytes": round(mib * MIB),
        "trainable_parameters": 1_572_864,
        "total_parameters": 332_769_280,
        "adapted_layers": 48,
    }
    return case("opt_350m", precision, scenario=scenario, metrics=metrics) | more


def run(name: str = "after", step: float = 20, peak: float = 40) -> StoredRun:
    unstable = {"detail": {"batch_size": 2, "seq_len": 64, "unstable": "drift over 10 %"}}
    return run_of(
        measured("query|value", "fp32", step, peak),
        measured("feed-forward", "fp32", 30, 30),
        measured("all & <more>", "nf4", 90, 10, **unstable),
        case("opt_350m", "nf4", scenario="everything", outcome="oom"),
        name=name,
    )


def verdicts() -> tuple[Any, ...]:
    before, after = run("before", 20, 20), run()
    found = compare(before, after)
    return found, gate(found), before, after


def test_markdown(snapshot: Any) -> None:
    assert markdown(comparison_report([run()])) == snapshot


def test_latex(snapshot: Any) -> None:
    assert paper([run()]) == snapshot
    assert latex(verdict_report(*verdicts())) == snapshot


def test_the_best_of_each_precision_is_bold() -> None:
    """By hand: 20 ms and 30 MiB in fp32; the one case of nf4 has no rival."""
    bold = re.findall(r"\\bfseries ([\d.]+)", paper([run()]))
    assert bold == ["20.00", "30.00"]


@pytest.mark.parametrize("width", [80, 120])
def test_terminal(snapshot: Any, width: int) -> None:
    text = in_terminal(comparison_report([run()]), width)
    assert max(map(len, text.splitlines())) <= width
    assert text == snapshot


def test_csv(snapshot: Any) -> None:
    rows = comparison_rows([run()])
    text = csv_text(HEADERS.values(), (vars(row).values() for row in rows))
    assert text == snapshot
    assert text == comparison_table([run()]).to_csv(index=False, lineterminator="\n")


def test_json(snapshot: Any) -> None:
    assert json_lines(asdict(row) for row in comparison_rows([run()])) == snapshot


def test_verdicts(snapshot: Any) -> None:
    assert markdown(verdict_report(*verdicts())) == snapshot


def test_comment(snapshot: Any) -> None:
    assert comment(*verdicts()) == snapshot


def test_comment_with_an_allowance(snapshot: Any) -> None:
    found, _, before, after = verdicts()
    allowed = ["regressed:*`0`*"]
    said = comment(found, gate(found, ["regressed:*"]), before, after, allowed)
    assert said == snapshot
    assert "the gate passes" in said
    assert "which let 1 verdict pass" in said


def test_a_comment_stays_short_whatever_happened() -> None:
    cases = [measured(f"s{n}", "fp32", 20, 40) for n in range(300)]
    worse = [measured(f"s{n}", "fp32", 20, 80 if n < 150 else 20) for n in range(300)]
    before, after = run_of(*cases, name="before"), run_of(*worse, name="after")
    found = compare(before, after)
    said = comment(found, gate(found), before, after, ["changed"] * 20)
    lines = said.splitlines()
    assert lines[0] == MARKER
    assert len(lines) <= VISIBLE_LINES < 60
    assert "130 more lines" in said
    assert said.index("regressed") < said.index("<details>") < said.index("| improved")
