"""`pytest suites/` against a stored run: what the gate sees, and which run may be a baseline."""

from __future__ import annotations

import json
import shutil

import pytest
from model_folders import write_adapter, write_model
from suite_runs import STEPS, SUITES, results_of

from bench.baselines import find_runs, load_run, seal, write_run
from bench.baselines.accepted import accept, no_baseline
from bench.cli import main


def test_save_compare_and_gate(run, pytester: pytest.Pytester) -> None:
    """The same thing twice holds exactly; one edited figure does not."""
    first = run(*STEPS, "--benchmark-save", "base")
    assert first.ret == pytest.ExitCode.OK
    first.stdout.fnmatch_lines(["*scenarios × precisions*", "stored run: results/*0001_base.json"])
    stored = load_run(find_runs(results_of(pytester), "0001")[0])
    step = next(r for r in stored.records.values() if r.suite == "measurement")
    # r (in + out) of q_proj 32 → 32 and v_proj 32 → 16 in two layers
    assert step.metrics["trainable_parameters"] == 2 * 4 * (32 + 32 + 32 + 16)
    assert len(step.metrics["step_seconds"]) == 5
    assert step.metrics["peak_allocated_bytes"] >= step.metrics["loaded_bytes"] > 0

    # Times of steps this small are noise: only what is exact and tracked has to hold here.
    timed = ("--threshold", "time=1000%", "--threshold", "reserved=1000%")
    again = run(*STEPS, *timed, "--benchmark-compare", "--gate", "--verdict-file", "verdicts.json")
    assert again.ret == pytest.ExitCode.OK
    again.stdout.fnmatch_lines(["*verdicts against base*"])
    verdicts = json.loads((pytester.path / "verdicts.json").read_text())
    assert verdicts["passed"]
    assert verdicts["summary"]["unchanged"] > 10

    document = json.loads(find_runs(results_of(pytester), "0001")[0].read_text())
    document["lora_bench"]["records"][step.id]["metrics"]["trainable_parameters"] += 1
    document["lora_bench"]["detail"]["gate"] = "passed"
    write_run(results_of(pytester), "edited", seal(document))
    changed = run(*STEPS, *timed, "--benchmark-compare", "--gate")
    assert changed.ret == pytest.ExitCode.TESTS_FAILED
    changed.stdout.fnmatch_lines(["*trainable parameters*"])


def test_a_failed_run_is_no_baseline_until_it_is_accepted(
    run, pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trying again does not turn it green; accepting it by name does, and is recorded."""
    counts = {"suites": "suites/test_counts.py"}
    compared = ("--benchmark-compare", "--gate")
    first = run("--benchmark-save", "good", **counts)
    first.stdout.fnmatch_lines(["accepted as the first baseline here: recorded in *accepted.json"])
    write_adapter(pytester.path / "mine", ["q_proj"])
    for attempt in ("second", "third"):
        result = run(*compared, "--benchmark-save", attempt, **counts)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            ["*against good*", f"*bench accept 000?_{attempt} --reason WHY*", "=*1 passed*"]
        )
        assert "verdicts failed the gate" in result.stdout.lines[-1]
    named = run("--benchmark-compare=second", "--gate", **counts, apart=True)
    assert named.ret == 2
    named.stderr.fnmatch_lines(
        ["*--gate: 0002_second may not be a baseline: its gate failed; accept it*"]
    )
    assert run("--benchmark-compare=second", **counts).ret == pytest.ExitCode.OK
    # Nor does one that no gate has looked at.
    run("--benchmark-save", "unseen", **counts)
    assert run(*compared, **counts).ret == pytest.ExitCode.TESTS_FAILED

    folder = str(results_of(pytester))
    assert main(["accept", "third", "--results", folder, "--reason", " "]) == 2
    assert main(["accept", "third", "--results", folder, "--reason", "v_proj is meant to go"]) == 0
    record = results_of(pytester) / "accepted.json"
    accepted = json.loads(record.read_text())
    assert accepted["0003_third"]["reason"] == "v_proj is meant to go"
    assert accepted["0001_good"]["reason"].startswith("the first run stored here")
    passed = run(*compared, "--benchmark-save", "fourth", **counts)
    assert passed.ret == pytest.ExitCode.OK
    passed.stdout.fnmatch_lines(["*against third*"])
    assert "failed the gate" not in passed.stdout.lines[-1]
    run(*compared, **counts).stdout.fnmatch_lines(["*against fourth*"])  # its gate has passed
    record.unlink()  # nothing but a passed gate and that file makes a baseline
    assert not no_baseline(load_run(folder + "/0005_fourth.json"))
    assert no_baseline(load_run(folder + "/0001_good.json")) == "it was the first, not accepted"


def test_a_broken_record_of_baselines_is_told_before_anything_runs(
    run, pytester: pytest.Pytester
) -> None:
    """And an edited run keeps none from being stored; it may have been the baseline, so that the
    new one is not taken for the first."""
    counts = {"suites": "suites/test_counts.py"}
    run("--benchmark-save", "first", **counts)
    folder = results_of(pytester)
    record = folder / "accepted.json"
    whole = record.read_text()
    record.write_text("{")
    refused = run("--benchmark-save", "second", **counts, apart=True)
    assert refused.ret == 2
    refused.stderr.fnmatch_lines(["*accepted.json: not JSON*"])
    assert "passed" not in refused.stdout.str()
    record.write_text(whole)
    (folder / "0001_first.json").write_text("{}")
    stored = run("--benchmark-save", "third", **counts)
    assert stored.ret == pytest.ExitCode.OK
    assert no_baseline(load_run(folder / "0002_third.json")) == "no gate has judged it"


def test_a_run_with_a_failed_test_is_no_baseline(run, pytester: pytest.Pytester) -> None:
    counts = {"suites": "suites/test_counts.py"}
    write_adapter(pytester.path / "mine", ["q_proj", "fc1"])
    assert run("--benchmark-save", "dead", **counts).ret == pytest.ExitCode.TESTS_FAILED
    refused = run("--benchmark-compare", apart=True, **counts)
    assert refused.ret == 2
    refused.stderr.fnmatch_lines(["*no run in * may be a baseline: 0001_dead (its gate failed)*"])


def test_what_was_not_compared_is_mentioned(run, pytester: pytest.Pytester) -> None:
    """Cases that --rank leaves out; an allowance of nothing. One's own rank is a change."""
    run("--benchmark-save", "base", *STEPS)
    config = pytester.path / "mine" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    compared = ("--benchmark-compare", "--gate", "--threshold", "time=1000%", *STEPS)
    result = run(*compared, "--allow", "changed:*nothing*")
    said = " ".join(result.stdout.str().split())
    assert "--allow changed:*nothing* let nothing pass" in said
    assert "vanished" not in said
    assert "mine-own-r4-fp32" in said
    assert "rank 4 -> 8" in said
    asked = run("--benchmark-compare", "--rank", "16", *STEPS)
    assert "1 case of the baseline not compared" in " ".join(asked.stdout.str().split())


def test_a_narrower_run_takes_no_baselines_place(run, pytester: pytest.Pytester) -> None:
    """Its gate passes; the case that it left out is still held against the wider run."""
    other = pytester.mkdir("other")
    for name in ("config.json", "adapter_config.json"):
        (other / name).write_text((pytester.path / "mine" / name).read_text())
    counted = ("--model", "other", "-m", "not measured")
    assert run("--benchmark-save", "wide", *counted, suites="suites/test_counts.py").ret == 0
    compared = ("--benchmark-compare", "--gate", "-m", "not measured")
    narrow = run(*compared, "--benchmark-save", "narrow", suites="suites/test_counts.py")
    assert narrow.ret == 0
    said = " ".join(narrow.stdout.str().split())
    assert "it was not asked for every case of its baseline" in said
    again = run(*compared, "--model", "other", suites="suites/test_counts.py")
    assert "verdicts against wide" in again.stdout.str()


def test_vanished_case_fails_the_gate(run, pytester: pytest.Pytester) -> None:
    run("--benchmark-save", "base", *STEPS)
    test = pytester.path / "suites" / "test_counts.py"
    test.write_text(test.read_text().replace("def test_user_targets", "def test_user_renamed"))
    result = run("--benchmark-compare", "--gate", suites="suites/test_counts.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*vanished*"])
    test.write_text(test.read_text().replace("def test_user_renamed", "def test_user_targets"))
    narrowed = run(
        "--benchmark-compare", "--gate", "--benchmark-disable", "-k", "test_step", *STEPS
    )
    assert narrowed.ret == pytest.ExitCode.OK


def test_a_gate_that_compared_nothing_does_not_pass(run) -> None:
    run("--benchmark-save", "base", suites="suites/test_counts.py")
    other = ("--benchmark-compare", "-k", "test_step", "--benchmark-disable", *STEPS)
    for more in ((), ("--gate",)):
        result = run(*other, *more)
        assert result.ret == 2
        result.stderr.fnmatch_lines(["*nothing to compare: none of the 1 cases of this run is in*"])


def test_a_gate_that_compared_no_step_does_not_pass(run) -> None:
    """The counts are the same; the steps are measured in another precision than the baseline's."""
    run("--benchmark-save", "base", *STEPS)
    other = ("--benchmark-compare", "--precision", "bf16", *STEPS[2:])
    seen = run(*other)
    assert seen.ret == pytest.ExitCode.OK
    assert "1 case of the baseline not compared" in " ".join(seen.stdout.str().split())
    gated = run(*other, "--gate")
    assert gated.ret == 2
    gated.stderr.fnmatch_lines(["*--gate: none of the 1 measured case of this run is in the*"])


def test_a_prediction_is_held_against_none_in_another_precision(
    run, pytester: pytest.Pytester
) -> None:
    for name in ("conftest.py", "test_prediction.py"):
        shutil.copy(SUITES / name, pytester.path / "suites")
    told = ("--seq-len", "8", "--precision", "fp16")
    foretold = {"suites": "suites/test_prediction.py"}
    assert run("--benchmark-save", "base", *told, "--precision", "nf4", **foretold).ret == 0
    gated = run("--benchmark-compare", "--gate", *told, "--precision", "bf16", **foretold)
    assert gated.ret == pytest.ExitCode.OK
    said = " ".join(gated.stdout.str().split())
    assert "passed: 1 new, 4 unchanged" in said
    assert "1 case of the baseline not compared" in said


def test_the_command_that_accepts_figures_is_this_run_again(run, pytester: pytest.Pytester) -> None:
    counts = {"suites": "suites/test_counts.py"}
    run("--benchmark-save", "base", **counts)
    write_adapter(pytester.path / "mine", ["q_proj"])
    result = run("--benchmark-compare", "--gate", "--allow", "new", "--rank", "4", **counts)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    said = " ".join(result.stdout.str().split())
    assert (
        "accept the new figures: pytest -p bench.plugin.suite suites/test_counts.py --model mine "
        "--rank 4 --benchmark-save=NAME, then bench accept NAME --reason WHY"
    ) in said


def test_a_baseline_elsewhere_may_be_of_another_machine(
    run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """pytest-benchmark's own warning fails on a folder outside of the current one."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    stored = (*STEPS, "--benchmark-storage", str(elsewhere))
    run("--benchmark-save", "base", *stored)
    (path,) = find_runs(elsewhere)
    document = json.loads(path.read_text())
    document["machine_info"]["node"] = "another"
    document["lora_bench"]["detail"]["gate"] = "passed"
    write_run(path.parent, "there", seal(document))
    loose = ("--threshold", "time=1000%", "--threshold", "reserved=1000%")
    result = run("--benchmark-compare", "--gate", *stored, *loose)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["Baseline 0002_there: *"])


@pytest.mark.parametrize("stored", ["both", "alone"])
def test_a_model_is_the_same_case_whatever_is_given_beside_it(
    run, pytester: pytest.Pytester, stored: str
) -> None:
    """Its name tells more of its path beside another of its last name."""
    for name in ("t1", "t2"):
        write_model(pytester.path / name / "model")
        write_adapter(pytester.path / name / "model", ["q_proj"])
    alone = ("--model", "t1/model")
    first, then = (alone, (*alone, "--model", "t2/model"))[:: 1 if stored == "alone" else -1]
    kept = run("--benchmark-save", "x", *first, suites="suites/test_counts.py", bare=True)
    assert kept.ret == pytest.ExitCode.OK
    held = ("--benchmark-compare", "--gate")
    done = run(*held, *then, suites="suites/test_counts.py", bare=True)
    assert done.ret == pytest.ExitCode.OK
    done.stdout.fnmatch_lines(["passed: *unchanged*"])
    if stored == "both":
        done.stdout.fnmatch_lines(["1 case* of the baseline not compared*"])


@pytest.mark.parametrize("stored", ["both", "alone"])
def test_one_of_two_models_is_not_held_against_the_other(
    run, pytester: pytest.Pytester, stored: str
) -> None:
    """One lies at the top, and is called as the other is where that is given alone."""
    counts = {"suites": "suites/test_counts.py", "bare": True}
    held = ("--benchmark-compare", "--gate")
    for name, targets in (("mod", ["q_proj"]), ("b/mod", ["q_proj", "v_proj"])):
        write_model(pytester.path / name)
        write_adapter(pytester.path / name, targets)
    alone, both = ("--model", "b/mod"), ("--model", "mod", "--model", "b/mod")
    first, then = (alone, both)[:: 1 if stored == "alone" else -1]
    assert run("--benchmark-save", "x", *first, **counts).ret == pytest.ExitCode.OK
    same = run(*held, *then, **counts)
    assert same.ret == pytest.ExitCode.OK
    new = "1 new, " if stored == "alone" else ""
    same.stdout.fnmatch_lines([f"passed: {new}* unchanged."])
    write_adapter(pytester.path / "b" / "mod", ["q_proj"])
    assert run(*held, *then, **counts).ret == pytest.ExitCode.TESTS_FAILED


OWN = "suites/test_counts.py::test_user_targets"


def test_a_model_of_a_long_name_is_called_by_it(run, pytester: pytest.Pytester) -> None:
    """pytest would number it (`user_subject0`): another model of another long name in its place
    was the same case."""
    for name in ("k" * 120, "l" * 120):
        write_model(pytester.path / name)
        write_adapter(pytester.path / name, ["q_proj"])
    counts = {"suites": "suites/test_counts.py", "bare": True}
    assert run("--benchmark-save", "x", "--model", "k" * 120, **counts).ret == pytest.ExitCode.OK
    (path,) = find_runs(results_of(pytester), "x")
    assert [*load_run(path).records] == [f"{OWN}[{'k' * 120}-own]"]
    done = run("--benchmark-compare", "--model", "l" * 120, "--model", "k" * 120, **counts)
    done.stdout.fnmatch_lines(["passed: 1 new, * unchanged."])


def test_a_run_without_cases_passes_no_gate(run, pytester: pytest.Pytester) -> None:
    """Nor does the verdict file of the one before it stay, which passed."""
    counts = {"suites": "suites/test_counts.py"}
    alone = run("--benchmark-save", "good", "--allow", "changed", **counts)
    assert "without effect, as nothing is compared: --allow" in alone.stdout.str()
    compared = ("--benchmark-compare", "--gate", "--verdict-file", "verdicts.json")
    verdicts = pytester.path / "verdicts.json"
    for without in (("-k", "nosuch"), ("--setup-plan",)):
        assert run(*compared, **counts).ret == pytest.ExitCode.OK
        assert json.loads(verdicts.read_text())["passed"]
        result = run(*compared, *without, **counts)
        assert result.ret == 2, without
        assert "error: --gate: no case was run, so that nothing is compared" in str(result.stderr)
        assert not json.loads(verdicts.read_text())["passed"]
    result = run("--benchmark-save", "empty", "-k", "nosuch", **counts)
    assert result.ret == 2
    assert "--benchmark-save: no case was run, so that nothing is stored" in str(result.stderr)
    assert not list(results_of(pytester).glob("**/.unfinished*"))


def test_a_gate_says_what_is_configured_otherwise_stored_or_not(
    run, pytester: pytest.Pytester
) -> None:
    """The gate of docs/ci.md stores nothing."""
    counts = {"suites": "suites/test_counts.py"}
    run("--benchmark-save", "good", **counts)
    config = pytester.path / "mine" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_rslora": True}))
    compared = ("--benchmark-compare", "--gate", "--verdict-file", "v.json")
    told = []
    for saved in ((), ("--benchmark-save", "again")):
        result = run(*compared, *saved, **counts)
        assert result.ret == pytest.ExitCode.OK
        assert "Configured otherwise, which no figure shows: " in result.stdout.str()
        told.append(json.loads((pytester.path / "v.json").read_text())["configured_otherwise"])
    assert told == [["mine-own-r4: use_rslora False -> True"]] * 2


def test_what_fails_as_it_did_before_has_not_passed(run, pytester: pytest.Pytester) -> None:
    """Its figures are all unchanged, and so the baseline was accepted: the run is red, and so is
    its gate."""
    counts = {"suites": "suites/test_counts.py"}
    write_adapter(pytester.path / "mine", ["q_proj", "nothere"])
    assert run("--benchmark-save", "dead", **counts).ret == pytest.ExitCode.TESTS_FAILED
    accept(find_runs(results_of(pytester), "dead")[0], "known")
    gated = run("--benchmark-compare", "--gate", "--verdict-file", "v.json", **counts)
    assert gated.ret == pytest.ExitCode.TESTS_FAILED
    document = json.loads((pytester.path / "v.json").read_text())
    assert not document["passed"]
    assert document["failed_beside"] == "1 test failed"
    allowed = run("--benchmark-compare", "--gate", "--allow", "broken", **counts)
    assert allowed.ret == pytest.ExitCode.TESTS_FAILED
    assert "FAILED: 1 test failed; no verdict fails (1 broken" in allowed.stdout.str()
    assert "\npassed: " not in allowed.stdout.str()
    found = {each["metric"]: each["verdict"] for each in document["verdicts"]}
    assert found.pop("outcome") == "broken"
    assert {*found.values()} == {"unchanged"}
