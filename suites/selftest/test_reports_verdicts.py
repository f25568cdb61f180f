"""Reports of verdicts, cell by cell against what was written by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import many
from test_baselines import MIB, QUERY, STEP, STEP_NF4, run_with

from bench.baselines import compare, gate
from bench.reports import (
    Report,
    markdown,
    terminal,
    verdict_report,
    verdict_table,
)
from bench.reports.closing import closing
from bench.reports.comment import comment


def verdicts_of(edit: Any) -> tuple[Report, str]:
    base, new = run_with(name="base"), run_with(edit)
    verdicts = compare(base, new)
    report = verdict_report(verdicts, gate(verdicts), base, new)
    return report, markdown(report)


def test_verdicts_cell_by_cell() -> None:
    def edit(body: dict[str, Any]) -> None:
        records = body["records"]
        records[QUERY]["metrics"]["adapted_layers"] = 12
        records[STEP]["metrics"]["peak_allocated_bytes"] = 1100 * MIB
        records[STEP]["metrics"]["step_seconds"] = [0.4] * 6
        del records[STEP_NF4]
        body["versions"]["peft"] = "0.22.0"

    report, text = verdicts_of(edit)
    assert (
        report.caption[2] == "FAILED: 1 regressed, 1 changed, 1 vanished, 1 improved, 3 unchanged."
    )
    rows = report.tables[0].rows
    assert [row[0] for row in rows] == ["regressed", "changed", "vanished", "improved"]
    why = "peft 0.21.2 -> 0.22.0"
    assert rows[0] == (
        "regressed", STEP, "peak allocated", "1,000 MiB", "1.074 GiB", "+100.0 MiB (+10.0 %)",
        "1 %", why,
    )  # fmt: skip
    assert rows[1] == (
        "changed", QUERY, "layers adapted", "24", "12", "-12 (-50.0 %)", "—", why
    )  # fmt: skip
    assert rows[2][1:] == (STEP_NF4, "case", "—", "—", "—", "—", "in the baseline, not in this run")
    assert rows[3][3:5] == ("800 ms", "400 ms")
    assert re.fullmatch(r"-400 ms \(-50\.0 %, 99% interval -5\d\.\d % to -4\d\.\d %\)", rows[3][5])
    assert "pytest suites/ --benchmark-save=NAME" in text
    assert report.tables[0].styles == ("bad", "bad", "bad", "good")


def test_equal_runs_pass_without_a_table() -> None:
    report, text = verdicts_of(lambda body: None)
    assert (report.tables, report.notes) == ((), ())
    assert "passed: 9 unchanged." in text


def test_many_incomparable_figures_are_one_line() -> None:
    base = many()
    other = replace(base, machine=replace(base.machine, threads=64))
    verdicts = compare(base, other)
    report = verdict_report(verdicts, gate(verdicts, ["incomparable"]), base, other)
    rows = report.tables[0].rows
    (row,) = [row for row in rows if row[2] == "step time"]
    assert row == (
        "incomparable (allowed)", "15 cases", "step time", "—", "—", "—", "—",
        "another machine: threads 1 -> 64",
    )  # fmt: skip
    assert report.caption[2].startswith("passed: ")


def test_an_incomparable_figure_that_is_equal_has_no_sign() -> None:
    base = run_with(lambda body: None)
    other = replace(base, machine=replace(base.machine, threads=64))
    report = verdict_report(compare(base, other), [], base, other)
    told = {row[5].partition(" (")[0] for row in report.tables[0].rows}
    assert told
    assert told <= {"±0 s", "±0 B"}


def test_too_few_rounds_is_said_once() -> None:
    def edit(body: dict[str, Any]) -> None:
        for key in (STEP, STEP_NF4):
            body["records"][key]["metrics"]["step_seconds"] = [1.0]

    report, _ = verdicts_of(edit)
    assert report.caption[-1] == "passed: 7 unchanged; 2 times not judged."
    assert report.notes == (
        "1 time not judged: too few rounds: 6 and 1, and each side needs 5.",
        "1 time not judged: too few rounds: 5 and 1, and each side needs 5.",
    )


def test_what_could_not_be_judged_is_said_in_every_summary() -> None:
    base = many()
    once = {
        key: replace(record, metrics={**record.metrics, "step_seconds": (0.0,)})
        if "step_seconds" in record.metrics
        else record
        for key, record in base.records.items()
    }
    verdicts = compare(base, new := replace(base, records=once))
    told = f"{len(verdicts) - 15} unchanged; 15 times not judged"
    assert f"passed: {told}." in markdown(verdict_report(verdicts, [], base, new))
    assert f"\n\n{told}\n" in comment(verdicts, [], base, new)
    assert told in closing(new, base, verdicts, [], places=(), save_command="pytest", most=3)
    assert {v.explanation for v in verdicts if v.metric == "step_seconds"} == {
        "not judged: too few rounds: 5 and 1, and each side needs 5"
    }


def test_a_comment_mentions_nobody() -> None:
    """What somebody's stored run holds is text, and sends nobody mail."""

    def edit(body: dict[str, Any]) -> None:
        record = body["records"].pop(QUERY)
        body["records"][QUERY.replace("]", "@octocat]")] = record

    base, new = run_with(name="base"), run_with(edit, name="@team")
    verdicts = compare(base, new)
    text = comment(verdicts, gate(verdicts), base, new)
    assert text.count("@<!-- -->octocat") == 2  # what is gone, and what is new
    assert re.search(r"@(?!<!-- -->)\w", text) is None


def test_a_heading_says_that_a_gate_failed() -> None:
    """Where it is stored: of the run that is judged now the answer itself tells."""
    base, new = run_with(name="base"), replace(run_with(), gate="failed")
    for path, said in ((Path("0002_new.json"), True), (None, False)):
        report = verdict_report(compare(base, new), [], base, replace(new, path=path))
        assert "its gate failed" not in report.caption[0]
        assert report.caption[1].endswith("; its gate failed when it was stored.") is said


@pytest.mark.parametrize("width", [40, 80, 200])
def test_verdicts_fit_the_terminal(width: int) -> None:
    def edit(body: dict[str, Any]) -> None:
        body["records"][QUERY]["metrics"]["adapted_layers"] = 12
        body["records"][STEP]["metrics"]["step_seconds"] = [9.0] * 6

    lines = terminal(verdicts_of(edit)[0], width).splitlines()
    assert [line for line in lines if len(line) > width and "::" not in line] == []


def test_the_verdict_frame_has_every_verdict_worst_first() -> None:
    base = run_with(name="base")
    new = run_with(lambda body: body["records"].pop(STEP))
    frame = verdict_table(compare(base, new), gate(compare(base, new)))
    assert frame["verdict"].tolist() == ["vanished"] + ["unchanged"] * 6
    assert frame["fails"].tolist() == [True] + [False] * 6
    assert frame.iloc[-1]["interval_low"] <= 1 <= frame.iloc[-1]["interval_high"]
