"""Thresholds from every place, what the gate lets through, and the verdict file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_baselines import MIB, QUERY, STEP, run_with
from verdict_edits import both, found, metric, only, peft

from bench.baselines import (
    FAILING,
    METRICS,
    VERDICTS,
    Thresholds,
    Verdict,
    all_thresholds,
    compare,
    count_verdicts,
    gate,
    write_verdicts,
)
from bench.errors import BenchError


def test_thresholds_by_metric_kind_and_scenario() -> None:
    peak, rss, step = (
        METRICS[name] for name in ("peak_allocated_bytes", "peak_rss_bytes", "step_seconds")
    )
    assert [Thresholds().of(item) for item in (peak, rss, step)] == [0.01, 0.05, 0.05]
    assert Thresholds().of(METRICS["trainable_parameters"]) == 0
    project = Thresholds().with_table({"time": "8%", "step_seconds": 0.07}, "pyproject.toml")
    fixture = project.with_table({"step_seconds": "20%"}, "roles.toml", scenario="query")
    command = fixture.with_options(["peak_rss_bytes=2%"])
    assert command.of(METRICS["forward_seconds"]) == 0.08
    assert (command.of(step), command.of(step, "query"), command.of(step, "key")) == (
        0.07,
        0.20,
        0.07,
    )
    assert command.of(rss) == 0.02
    assert fixture.with_options(["time=1%"]).of(step, "query") == 0.01  # the last layer decides


def test_thresholds_from_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyproject, the scenario's fixture, the command line, in this order; a wrong one is named."""
    scenarios = tmp_path / "scenarios"
    scenarios.mkdir()
    fixture = scenarios / "mine.toml"
    text = '[scenario.query]\nroles = ["query"]\n[scenario.query.thresholds]\n'
    fixture.write_text(text + 'step_seconds = "20%"\n')
    monkeypatch.setattr("bench.scenarios.scenario.FIXTURES", tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.bench.thresholds]\ntime = "8%"\n')
    step = METRICS["step_seconds"]
    (tmp_path / "tests").mkdir()
    found = all_thresholds((), tmp_path / "tests")
    assert (found.of(step, "query"), found.of(step, "key")) == (0.20, 0.08)
    found = all_thresholds(["time=1%"], tmp_path)
    assert (found.of(step, "query"), found.of(step, "key")) == (0.01, 0.01)
    project.write_text('[tool.bench.thresholds]\ntimes = "8%"\n')
    with pytest.raises(BenchError, match=r"pyproject\.toml: tool\.bench\.thresholds.*times"):
        all_thresholds((), tmp_path)
    project.unlink()
    fixture.write_text(text + 'step_secnds = "20%"\n')
    with pytest.raises(BenchError, match=r"scenario query: thresholds.*step_seconds"):
        all_thresholds((), tmp_path)


def test_a_threshold_changes_a_verdict() -> None:
    edit = metric(STEP, "peak_allocated_bytes", 1100 * MIB)
    assert only(edit).verdict == "regressed"
    assert found(edit, thresholds=Thresholds().with_options(["peak_allocated_bytes=10%"])) == []


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("step_second=10%", "did you mean step_seconds"),
        ("step_seconds", "METRIC=NUMBER"),
        ("step_seconds=fast", "not a threshold"),
        ("step_seconds=", "not a threshold"),
        ("step_seconds=-1%", "0 or more"),
        ("step_seconds=nan", "0 or more"),
        ("step_seconds=inf%", "0 or more"),
        ("step_seconds=10", "write 10%"),
        ("adapted_layers=1%", "equal or changed"),
        ("exact=1%", "equal or changed"),
    ],
)
def test_a_wrong_threshold_is_named(option: str, reason: str) -> None:
    with pytest.raises(BenchError, match=reason):
        Thresholds().with_options([option])


def test_a_wrong_threshold_in_a_table_names_the_file() -> None:
    for table in ({"step_seconds": True}, {"step_seconds": None}, {"step_seconds": [1]}):
        with pytest.raises(BenchError, match=r"pyproject\.toml"):
            Thresholds().with_table(table, "pyproject.toml")


MIXED = [Verdict(f"suites/a.py::test[{i}-{word}]", "case", word) for i, word in enumerate(VERDICTS)]


def test_the_gate_fails_five_verdicts() -> None:
    assert [item.verdict for item in gate(MIXED)] == list(FAILING)
    assert FAILING == ("regressed", "changed", "vanished", "incomparable", "broken")
    assert count_verdicts(MIXED) == dict.fromkeys(VERDICTS, 1)


@pytest.mark.parametrize(
    ("allow", "left"),
    [
        (["vanished"], ["regressed", "changed", "incomparable", "broken"]),
        (["vanished", "incomparable"], ["regressed", "changed", "broken"]),
        (["*"], []),
        (["suites/a.py::test[1-changed]"], ["regressed", "vanished", "incomparable", "broken"]),
        (["suites/a.py::test[1*"], ["regressed", "vanished", "incomparable", "broken"]),
        (["changed:*test[1-*"], ["regressed", "vanished", "incomparable", "broken"]),
        (["vanished:*test[1-*"], list(FAILING)),
        (["suites/b.py*"], list(FAILING)),
    ],
)
def test_what_is_allowed(allow: list[str], left: list[str]) -> None:
    assert [item.verdict for item in gate(MIXED, allow)] == left


@pytest.mark.parametrize("word", ["vanishd", "", "all"])
def test_a_misspelt_allowance_is_an_error(word: str) -> None:
    with pytest.raises(BenchError, match="verdict to allow"):
        gate(MIXED, [word])


def test_what_was_not_judged_is_counted_apart(tmp_path: Path) -> None:
    """One of two times has too few rounds: unchanged for the gate, and no finding."""
    few = Verdict("a", "step_seconds", "unchanged", 1.0, 2.0, explanation="not judged: too few")
    steady = Verdict("b", "step_seconds", "unchanged", 1.0, 1.0)
    path = tmp_path / "verdicts.json"
    write_verdicts(path, [few, steady], [], run_with(), run_with())
    summary = json.loads(path.read_text())["summary"]
    assert (summary["unchanged"], summary["not judged"]) == (1, 1)
    assert sum(summary.values()) == 2


def test_the_verdict_file(tmp_path: Path) -> None:
    edit = both(metric(QUERY, "adapted_layers", 12), metric(STEP, "loaded_bytes", 7), peft("0.22"))
    contender = run_with(edit)
    baseline = run_with(metric(STEP, "loaded_bytes", 0))
    verdicts = compare(baseline, contender)
    path = tmp_path / "verdicts.json"
    write_verdicts(path, verdicts, gate(verdicts, ["regressed"]), baseline, contender)
    document = json.loads(path.read_text())
    assert (document["schema"], document["passed"]) == (1, False)
    assert document["summary"]["changed"] == document["summary"]["regressed"] == 1
    assert document["contender"]["versions"]["peft"] == "0.22"
    assert document["not_compared"] == []
    by_metric = {(item["record"], item["metric"]): item for item in document["verdicts"]}
    assert len(by_metric) == len(verdicts)
    assert by_metric[QUERY, "adapted_layers"] == {
        "record": QUERY,
        "metric": "adapted_layers",
        "unit": "count",
        "verdict": "changed",
        "baseline": 24,
        "contender": 12,
        "ratio": 0.5,
        "interval": None,
        "threshold": 0.0,
        "explanation": "peft 0.21.2 -> 0.22",
        "fails": True,
    }
    loaded = by_metric[STEP, "loaded_bytes"]
    assert (loaded["ratio"], loaded["fails"]) == (None, False)  # from zero; allowed
    assert len(by_metric[STEP, "step_seconds"]["interval"]) == 2
