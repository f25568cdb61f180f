"""The suites as a user runs them: real runs of pytest in a folder of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_folders import write_adapter, write_model
from suite_runs import COLLECTED, STEPS, SUITES, results_of

from bench.baselines import find_runs, load_run


def test_own_model(run) -> None:
    result = run(suites="suites/test_counts.py")
    result.assert_outcomes(passed=1, deselected=result.parseoutcomes()["deselected"])


def test_dead_entry_fails_and_tells_what_to_write(run, pytester: pytest.Pytester) -> None:
    write_adapter(pytester.path / "mine", ["q_proj", "qkv_proj", "fc1"])
    result = run(suites="suites/test_counts.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*mine: 2 of 3 entries reach nothing*",
            "*fc1: dead; write instead: up_proj (up, 2 modules)*",
            "dead entry: qkv_proj reaches nothing on mine",
        ]
    )
    allowed = run("--optional", "fc1,qkv_proj", suites="suites/test_counts.py")
    assert allowed.ret == pytest.ExitCode.OK


def test_two_models_of_one_name_are_two(run, pytester: pytest.Pytester) -> None:
    """The one that fails is not the one that is dropped."""
    other = pytester.mkdir("other") / "mine"
    shutil.copytree(pytester.path / "mine", other)
    write_adapter(other, ["q_proj", "fc1"])
    suites = "suites/test_counts.py"
    result = run("--model", "other/mine", suites=suites)
    result.assert_outcomes(passed=1, failed=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["FAILED *test_user_targets[[]other/mine-own[]]*"])
    twice = run("--model", "mine", "--model", "./mine", suites=suites, apart=True)
    assert twice.ret == 2
    assert "are the same" in twice.stderr.str()


def test_running_out_of_memory_is_an_outcome(run, pytester: pytest.Pytester) -> None:
    write_model(pytester.path / "mine", vocab_size=4_000_000, hidden_size=64)
    result = run(*STEPS, "--memory-limit", "0.2", "--benchmark-save", "oom")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1, xfailed=1)
    (step,) = (r for r in load_run(find_runs(results_of(pytester))[0]).records.values()
               if r.suite == "measurement")  # fmt: skip
    assert step.outcome == "oom"
    result.stdout.fnmatch_lines(["*oom*"])


@pytest.mark.parametrize(
    "options", [("mine", "--scenario", "query-value"), ("opt-125m", "--target-modules", "q_proj")]
)
def test_all_suites_are_collected_for_what_is_ones_own(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    """With their own conftest.py, where most of them have no subject then."""
    write_model(tmp_path / "mine")
    command = [sys.executable, "-m", "pytest", str(SUITES), "-q", "--collect-only", "--model"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "test_measurement.py" in done.stdout


def test_collecting_imports_no_torch(pytestconfig: pytest.Config) -> None:
    """Choosing tests takes seconds, and importing torch as many again. Of all that this very run
    has collected; and of a suite by itself, without options."""
    assert not pytestconfig.stash[COLLECTED]
    code = (
        "import sys, pytest\n"
        "status = pytest.main(['suites/test_measurement.py', '--collect-only', '-qq'])\n"
        "heavy = {'torch', 'transformers', 'peft', 'pandas'} & set(sys.modules)\n"
        "assert not status and not heavy, (status, heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SUITES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]


def test_the_end_is_short_and_a_page_is_written(run, pytester: pytest.Pytester) -> None:
    page = pytester.path / "page.html"
    result = run("--report", str(page), "--benchmark-save", "base", *STEPS)
    assert result.ret == pytest.ExitCode.OK
    lines = result.stdout.lines
    start = next(i for i, line in enumerate(lines) if "scenarios × precisions" in line)
    end = next(i for i, line in enumerate(lines) if i > start and " passed" in line)
    assert end - start <= 40
    said = "\n".join(lines[start:end])
    assert "smallest own r4 fp32" in said
    assert "page: page.html" in said
    assert "every case: bench report 0001_base" in said
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    unwritten = run(
        "--report", "/dev/full", "--benchmark-save", "full", suites="suites/test_counts.py"
    )
    assert unwritten.ret == 2
    unwritten.stdout.fnmatch_lines(["stored run: *0002_full.json", "*1 passed*"])
    assert unwritten.stderr.lines[-1] == (
        "Exit: error: --report /dev/full: not written: No space left on device"
    )
    refused = run("--report", "nowhere/page.html", *STEPS, apart=True)
    assert refused.ret == 2
    assert "there is no folder" in refused.stderr.str()


@pytest.mark.evidence
@pytest.mark.parametrize(
    ("variant", "ends", "said"),
    [
        ({"kasa_config": {}}, "4 passed", ""),
        ({"monteclora_config": {}}, "3 passed, 1 skipped", "any.default"),
        ({"init_lora_weights": "pissa"}, "2 failed, 2 passed", ""),
    ],
    ids=["kasa", "monteclora", "pissa"],
)
def test_a_variant_of_ones_own(
    variant: dict[str, Any], ends: str, said: str, tmp_path: Path
) -> None:
    """KaSA is plain LoRA in int8 and nf4: the prediction's parameters and the closed form's.
    MonteCLoRA's parameters are counted on meta too; its step cannot be traced, which is told. PiSSA
    of quantized weights fails there, as in a real step."""
    write_model(tmp_path / "mine")
    values = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 4, **variant}
    (tmp_path / "mine" / "adapter_config.json").write_text(json.dumps(values))
    files = [str(SUITES / f"test_{name}.py") for name in ("prediction", "parameters")]
    storage = ["--benchmark-storage", str(tmp_path / "runs"), "--benchmark-save", "one"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-q", "--model", "mine", *storage],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == ("failed" in ends), done.stdout[-2000:] + done.stderr
    assert ends in done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("not predicted: mine-own")]
    assert all(said in line for line in told)
    (stored,) = (tmp_path / "runs").rglob("*_one.json")
    records = load_run(stored).records.values()
    outcomes = [record.outcome for record in records]
    assert len(outcomes) == 4 - len(told)
    assert outcomes.count("failed") == (2 if "failed" in ends else 0)
    assert len(told) == (1 if said else 0)
