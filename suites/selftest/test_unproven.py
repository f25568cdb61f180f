"""A baseline that has passed no gate may be named: whatever is held against it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from learning_study import texts_of, weights_of
from test_baselines import QUERY, sample

from bench.baselines import compare, gate, load_run, write_run, write_verdicts
from bench.baselines.accepted import load_baseline, unproven
from bench.cli import main
from bench.errors import BenchError
from bench.reports.closing import closing
from bench.reports.comment import comment
from bench.reports.page import page
from bench.reports.paper import paper
from bench.reports.sides import sides_report

SAID = {
    None: "0001_base has never passed a gate, and nobody has accepted it: no gate has judged it.",
    "first": "0001_base has never passed a gate, and nobody has accepted it: it was the first, not "
             "accepted.",
    "failed": "0001_base FAILED its gate, and nobody has accepted it: what is unchanged against it "
              "may be as wrong as it was.",
    "narrower": "0001_base may not be a baseline unless it is named: it was not asked for every "
                "case of its baseline, which stays the one.",
    "passed": "",
}  # fmt: skip
Stored = tuple[Path, Path]


@pytest.fixture
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> Stored:
    """A baseline whose gate ended so, and a run in which everything changed."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "linux-x86_64-cpu"
    folder.mkdir(parents=True)
    detail = {} if request.param is None else {"gate": request.param}
    new = sample("new")
    new["lora_bench"]["records"][QUERY]["metrics"]["adapted_layers"] = 12
    return write_run(folder, "base", sample("base", detail=detail)), write_run(folder, "new", new)


@pytest.mark.parametrize(("stored", "said"), SAID.items(), indirect=["stored"])
@pytest.mark.parametrize("accepted", [False, True])
def test_every_answer_against_it_says_so(
    stored: Stored, said: str, accepted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if accepted:
        assert main(["accept", "0001", "--reason", "looked at"]) == 0
        said = ""
    base, new = map(load_run, stored)
    assert unproven(base) == said
    verdicts = compare(base, new)
    failing = gate(verdicts)
    write_verdicts(Path("verdicts.json"), verdicts, failing, base, new)
    assert json.loads(Path("verdicts.json").read_text())["baseline"]["unproven"] == said

    def shown(*asked: str) -> tuple[str, str]:
        capsys.readouterr()
        assert main(asked) == (1 if asked[0] == "compare" else 0)
        out, err = capsys.readouterr()
        return " ".join(out.split()), err

    answers = []
    for form in ("terminal", "markdown", "latex", "comment"):
        answers.append(shown("compare", "0001", "0002", "--format", form)[0])
        if form != "comment":
            answers.append(shown("report", "0002", "--baseline", "0001", "--format", form)[0])
    for form in ("csv", "json"):
        answers.append(shown("compare", "0001", "0002", "--format", form)[1])
        answers.append(shown("report", "0002", "--baseline", "0001", "--format", form)[1])
    answers += [
        page([new], base, verdicts=verdicts, failing=failing, trees=[]),
        paper([new], base),
        *(closing(new, base, verdicts, failing, places=(), save_command="pytest", most=most)
          for most in (40, 3)),
    ]  # fmt: skip
    marks = ("never passed a gate", "FAILED its gate", "unless it is named")
    for answer in answers:
        told = [mark for mark in marks if mark in " ".join(answer.replace("\\_", "_").split())]
        assert told == [mark for mark in marks if mark in said], answer
    visible = comment(verdicts, failing, base, new).partition("<details>")[0]
    assert ("**Baseline**: " in visible) == bool(said)


@pytest.mark.parametrize("stored", [None], indirect=True)
def test_a_run_that_is_not_stored_has_no_gate_to_pass(stored: Stored) -> None:
    """The sides of `bench ab`, measured together."""
    from dataclasses import replace

    assert unproven(replace(load_run(stored[0]), path=None)) == ""


@pytest.mark.parametrize("stored", ["failed"], indirect=True)
def test_learning_is_gated_against_no_failed_run(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--weights", str(weights_of(tmp_path / "weights")), "--data", str(texts_of(tmp_path))]
    folder = str(tmp_path / "results")
    assert main(["learn", "minilm", *own, "--results", folder, "--compare", "0001"]) == 2
    said = capsys.readouterr().err
    assert "0001_base may not be a baseline: its gate failed" in said


@pytest.mark.parametrize("stored", [None], indirect=True)
def test_a_pattern_and_the_start_of_a_name_name_no_run(stored: Stored) -> None:
    stored[1].unlink()
    storage = stored[0].parents[1]
    for name in ("0001", "1", "base", "0001_base", "1_base", "linux-x86_64-cpu/base",
                 "0001_base.json", str(stored[0])):  # fmt: skip
        assert load_baseline(storage, name).label == "0001_base"
    for pattern in ("*", "b*", "0001_*", "0001_b", "000", "?ase", "linux-*/*"):
        with pytest.raises(BenchError, match=r"no run in .* may be a baseline: 0001_base"):
            load_baseline(storage, pattern)


@pytest.mark.parametrize("stored", ["passed"], indirect=True)
def test_what_let_nothing_pass_is_said_beside_data_and_of_two_sides_too(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "--allow vanished:none let nothing pass: no failing verdict is like that."
    for form in ("csv", "json"):
        asked = ["compare", "0001", "0002", "--allow", "changed", "--allow", "vanished:none"]
        assert main([*asked, "--format", form]) == 0
        assert capsys.readouterr().err == f"{said}\n"
    base, new = map(load_run, stored)
    verdicts = compare(base, new)
    allow = ["changed", "vanished:none"]
    assert said in sides_report(verdicts, gate(verdicts, allow), base, new, allow).notes
