"""The suites as a user runs them: real runs of pytest in a folder of their own."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.adapters.config import AdapterConfig
from bench.baselines import KEY, find_runs, load_run, seal, write_run
from bench.baselines.accepted import no_baseline
from bench.cli import main
from bench.measure.counting import count, inject
from bench.models.architectures import find_model

SUITES = Path(__file__).resolve().parent.parent
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "vocab_size": 20,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
STEPS = ("--precision", "fp32", "--rounds", "5", "--seq-len", "8")


@pytest.fixture(autouse=True, scope="module")
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs inside this process forget what they imported, and torch cannot be imported twice."""
    import bench.reports.tables  # noqa: F401

    file = tmp_path_factory.mktemp("imported") / "config.json"
    file.write_text(json.dumps(LLAMA))
    count(inject(find_model(str(file)).build(), AdapterConfig(("q_proj",))))


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run `pytest suites/` with options, in a project that holds a tiny model `mine`."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    suites = pytester.mkdir("suites")
    for suite in ("counts", "measurement"):
        shutil.copy(SUITES / f"test_{suite}.py", suites)
    folder = pytester.mkdir("mine")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    _adapter(folder, ["q_proj", "v_proj"])
    pytester.makepyprojecttoml(
        "[tool.pytest.ini_options]\naddopts = ["
        "'--benchmark-quiet', '--strict-markers', '--import-mode=importlib']"
    )

    def run_pytest(
        *arguments: str, suites: str = "suites/", apart: bool = False
    ) -> pytest.RunResult:
        if apart:
            return pytester.runpytest_subprocess("-p", "bench.plugin.suite", suites, *arguments)
        return pytester.runpytest_inprocess(
            "-p", "bench.plugin.suite", suites, "--model", "mine", *arguments
        )

    return run_pytest


def _adapter(folder: Path, targets: list[str]) -> None:
    values = {"peft_type": "LORA", "r": 4, "target_modules": targets, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(values))


def _results(pytester: pytest.Pytester) -> Path:
    (folder,) = (pytester.path / "results").iterdir()
    return folder


def test_own_model(run) -> None:
    result = run(suites="suites/test_counts.py")
    result.assert_outcomes(passed=1, deselected=result.parseoutcomes()["deselected"])


def test_dead_entry_fails_and_tells_what_to_write(run, pytester: pytest.Pytester) -> None:
    _adapter(pytester.path / "mine", ["q_proj", "qkv_proj", "fc1"])
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
    _adapter(other, ["q_proj", "fc1"])
    suites = "suites/test_counts.py"
    result = run("--model", "other/mine", suites=suites)
    result.assert_outcomes(passed=1, failed=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["FAILED *test_user_targets[[]other/mine-own[]]*"])
    twice = run("--model", "mine", "--model", "./mine", suites=suites, apart=True)
    assert twice.ret == 2
    assert "are the same" in twice.stderr.str()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "nf5"], "unknown precision 'nf5': did you mean nf4"),
        (["--scenario", "qurey"], "unknown scenario 'qurey': did you mean query"),
        (["--adapter", "a.json", "--adapter", "b.json"], "--adapter is given twice"),
        (["--model", "opt-350m", "--model", "opt-350m"], "--model opt-350m is given twice"),
        (["-p", "no:benchmark", "-o", "addopts="], "pytest-benchmark is switched off"),
        (
            ["--adapter", "a.json", "--target-modules", "q_proj"],
            "--adapter, --target-modules: each",
        ),
        (
            ["--scenario", "query", "--target-modules", "q_proj"],
            "--target-modules, --scenario: each",
        ),
        (["--target-modules", ""], "target_modules is empty"),
        (["--rank", "0"], "--rank must be a whole number of at least 1"),
        (["--model", "opt-35m"], "unknown architecture 'opt-35m': did you mean opt-350m"),
        (["--model", "./nowhere"], "nowhere"),
        (["--benchmark-compare"], "no stored run in"),
        (["--gate"], "--gate needs --benchmark-compare"),
        (["--threshold", "step_secs=5%"], "step_secs"),
        (["--allow", "vanishd"], "did you mean vanished"),
        (["--rounds", "0"], "--rounds must be greater than 0"),
        (["--memory-limit", "nan"], "--memory-limit must be a finite number greater than 0"),
        (["--memory-limit", "inf"], "--memory-limit must be a finite number greater than 0"),
        (["--time-limit", "nan"], "--time-limit must be a finite number greater than 0"),
        (["--time-limit", "inf"], "--time-limit must be a finite number greater than 0"),
        (["--budget", "-1"], "--budget must be a finite number greater than 0, not -1"),
        (["--budget", "0"], "--budget must be a finite number greater than 0, not 0"),
        (["--budget", "nan"], "--budget must be a finite number greater than 0, not nan"),
        (["--check-loss", "-3"], "--check-loss must be 0 (do not check) or a number of steps"),
        (["--benchmark-save=a b ü"], "'a b ü' cannot name a run"),
        (["--benchmark-min-rounds=3"], "--benchmark-min-rounds has no effect on these suites"),
        (["--benchmark-warmup=on"], "--benchmark-warmup has no effect on these suites"),
        (["--benchmark-storage=elasticsearch+http://x"], "runs are stored in a folder"),
        (["-n", "2", "--benchmark-save", "x"], "--benchmark-save does not go with pytest-xdist"),
    ],
)
def test_wrong_option_ends_with_status_2(run, options: list[str], said: str) -> None:
    result = run(*options, apart=True)
    assert result.ret == 2
    output = result.stdout.str() + result.stderr.str()
    assert said in output
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output


def test_cases_left_out_by_k_are_not_counted_as_ahead(run) -> None:
    two = ("--precision", "fp32", "--precision", "bf16", "--rounds", "1", "--seq-len", "8")
    result = run(*two, "-k", "fp32", suites="suites/test_measurement.py")
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["*[[]1/1[]] mine-own-r4-fp32 ok*"])


def test_sequences_beyond_the_models_positions_are_refused_before_anything_is_measured(
    run, pytester: pytest.Pytester
) -> None:
    """By the config's own figure; the other suites do not look at the length."""
    config = pytester.path / "mine" / "config.json"
    config.write_text(json.dumps({**LLAMA, "max_position_embeddings": 16}))
    refused = run("--precision", "fp32", "--seq-len", "17")
    assert refused.ret == 2
    output = refused.stdout.str() + refused.stderr.str()
    assert "error: --seq-len: sequence length 17: mine has positions for 16 tokens" in output
    assert "Traceback" not in output
    refused.assert_outcomes()
    fits = run("--precision", "fp32", "--rounds", "1", "--seq-len", "16")
    assert fits.ret == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("options", "on_gpu", "limit"),
    [
        ((), False, 6 * 2**30),
        ((), True, None),
        (("--memory-limit", "0.5"), False, 2**29),
        (("--memory-limit", "80"), True, 80 * 2**30),
    ],
)
def test_the_memory_limit_is_the_cpus_unless_asked_for(
    run,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    *,
    options: tuple[str, ...],
    on_gpu: bool,
    limit: int | None,
) -> None:
    """Where there is a GPU, full-size models are measured: 6 GiB would stop nearly all of them."""
    monkeypatch.setattr("bench.plugin.fixtures.has_gpu", lambda: on_gpu)
    (pytester.path / "suites" / "test_limit.py").write_text(
        "def test_limit(measured, measuring):\n"
        f"    assert measuring.memory_limit_bytes == {limit}\n"
    )
    result = run("--precision", "fp32", *options, suites="suites/test_limit.py")
    result.assert_outcomes(passed=1)


def test_save_compare_and_gate(run, pytester: pytest.Pytester) -> None:
    """The same thing twice holds exactly; one edited figure does not."""
    first = run(*STEPS, "--benchmark-save", "base")
    assert first.ret == pytest.ExitCode.OK
    first.stdout.fnmatch_lines(["*scenarios × precisions*", "stored run: results/*0001_base.json"])
    stored = load_run(find_runs(_results(pytester), "0001")[0])
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

    document = json.loads(find_runs(_results(pytester), "0001")[0].read_text())
    document["lora_bench"]["records"][step.id]["metrics"]["trainable_parameters"] += 1
    document["lora_bench"]["detail"]["gate"] = "passed"
    write_run(_results(pytester), "edited", seal(document))
    changed = run(*STEPS, *timed, "--benchmark-compare", "--gate")
    assert changed.ret == pytest.ExitCode.TESTS_FAILED
    changed.stdout.fnmatch_lines(["*trainable parameters*"])


def test_pytest_benchmarks_own_options_work(run, pytester: pytest.Pytester) -> None:
    shown = ("--benchmark-columns=min,rounds", "--benchmark-json=all.json", "--benchmark-autosave")
    result = run(*STEPS, *shown)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.re_match_lines([r"Name \(time in \w+\) +Min +Rounds *$"])
    (benchmark,) = json.loads((pytester.path / "all.json").read_text())["benchmarks"]
    assert len(benchmark["stats"]["data"]) == 5
    (path,) = _results(pytester).glob("0001_*.json")
    assert "unversioned" in path.name  # pytest-benchmark's name: commit and time
    assert len(load_run(path).records) == 2


def test_one_step_is_not_stored_as_a_measured_case(run, pytester: pytest.Pytester) -> None:
    refused = run("--benchmark-save", "base", "--benchmark-disable", *STEPS)
    assert refused.ret == 2
    refused.stdout.fnmatch_lines(["*--benchmark-disable takes one step*nothing to store*"])
    assert not list(pytester.path.glob("results/*/*.json"))
    counted = run("--benchmark-save", "base", "--benchmark-disable", suites="suites/test_counts.py")
    assert counted.ret == pytest.ExitCode.OK
    counted.stdout.fnmatch_lines(["*= stored run =*", "stored run: *"])  # no table is announced
    counted.stdout.no_fnmatch_line("*scenarios × precisions*")


def test_a_failed_run_is_no_baseline_until_it_is_accepted(
    run, pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trying again does not turn it green; accepting it by name does, and is recorded."""
    counts = {"suites": "suites/test_counts.py"}
    compared = ("--benchmark-compare", "--gate")
    first = run("--benchmark-save", "good", **counts)
    first.stdout.fnmatch_lines(["accepted as the first baseline here: recorded in *accepted.json"])
    _adapter(pytester.path / "mine", ["q_proj"])
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

    folder = str(_results(pytester))
    assert main(["accept", "third", "--results", folder, "--reason", " "]) == 2
    assert main(["accept", "third", "--results", folder, "--reason", "v_proj is meant to go"]) == 0
    record = _results(pytester) / "accepted.json"
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
    folder = _results(pytester)
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
    assert no_baseline(load_run(folder / "0002_third.json")) == "no gate held it against another"


def test_a_run_with_a_failed_test_is_no_baseline(run, pytester: pytest.Pytester) -> None:
    counts = {"suites": "suites/test_counts.py"}
    _adapter(pytester.path / "mine", ["q_proj", "fc1"])
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


def test_a_full_disk_while_saving_loses_no_case(
    run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is told of, kept elsewhere, and nothing half-written lies in results/."""
    elsewhere = pytester.mkdir("elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    link = os.link

    def full(source: Path, target: Path) -> None:
        if "results" in Path(target).parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link(source, target)

    monkeypatch.setattr("os.link", full)
    result = run(*STEPS, "--benchmark-save", "full")
    assert result.ret == 2
    output = result.stdout.str() + result.stderr.str()
    assert "No space left on device; nothing was written; the run is kept in" in output
    assert [path for path in _results(pytester).iterdir() if path.is_file()] == []
    (kept,) = elsewhere.glob("*/0001_full.json")
    assert {r.outcome for r in load_run(kept).records.values()} == {"ok"}
    assert len(load_run(kept).records) == 2


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


KILLED = """
import os, pytest, signal

@pytest.fixture(autouse=True)
def killed(request):
    if "bf16" in request.node.name:
        os.kill(os.getpid(), signal.{name})
        signal.sigtimedwait([], 5)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_killed_run_keeps_its_cases_and_goes_on(
    run, pytester: pytest.Pytester, name: str
) -> None:
    """What is finished is on the disk; --resume measures the rest, and the whole is one run."""
    two = ("--precision", "fp32", "--precision", "bf16", *STEPS[2:], "--model", "mine")
    saved = (*two, "--benchmark-save", "long", "-p", "no:randomly")
    pytester.makeconftest(KILLED.format(name=name))
    cut = run(*saved, apart=True)
    assert cut.ret == (-9 if name == "SIGKILL" else 2)
    assert "Traceback" not in cut.stderr.str()
    pytester.makeconftest("")
    other = run(*saved, "--rounds", "7", "--resume", apart=True)
    assert other.ret == 2
    assert "--rounds 5 -> 7" in other.stdout.str() + other.stderr.str()
    whole = run(*saved, "--resume", apart=True)
    assert whole.ret == 0, whole.stdout.str()
    whole.stdout.fnmatch_lines(["2 cases taken over from 0001_long, not measured again"])
    runs = {path.name: load_run(path) for path in find_runs(_results(pytester), "long")}
    first, last = runs["0001_long.json"], runs["0002_long.json"]
    assert first.interrupted
    assert not last.interrupted
    assert len(first.records) == 2
    assert {r.precision for r in last.records.values()} == {None, "fp32", "bf16"}
    assert first.records.items() <= last.records.items()
    timed = json.loads((_results(pytester) / "0002_long.json").read_text())["benchmarks"]
    assert sorted(each["fullname"] for each in timed) == sorted(
        key for key, record in last.records.items() if record.precision
    )  # as if it had never been cut
    assert not list(_results(pytester).glob(".unfinished*"))
    over = run(*saved, "--resume", apart=True)
    assert over.ret == 2
    assert "0002_long came to its end" in over.stdout.str() + over.stderr.str()


def test_a_folder_that_cannot_hold_runs_is_told_before_anything_is_measured(
    run, pytester: pytest.Pytester
) -> None:
    pytester.path.joinpath("file").write_text("")
    for folder in ("file/here", "/proc/none"):
        result = run(*STEPS, "--benchmark-save", "x", f"--benchmark-storage={folder}", apart=True)
        assert result.ret == 2, folder
        output = result.stdout.str() + result.stderr.str()
        assert "error: " in output
        assert "Traceback" not in output
        assert "collected" not in output


def test_a_folder_with_an_escape_character_is_one(run, pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("a\x1b[31mb")
    result = run(
        "--benchmark-save", "x", f"--benchmark-storage={folder}", suites="suites/test_counts.py"
    )
    assert result.ret == pytest.ExitCode.OK
    assert "\x1b" not in result.stdout.str()
    assert load_run(folder / "0001_x.json").gate == "first"


CUT = """
import pytest

@pytest.fixture(autouse=True)
def cut(request):
    if request.node.name.startswith("test_step"):
        {what}
"""


@pytest.mark.parametrize(
    ("what", "options"), [("raise KeyboardInterrupt", ()), ("assert 1 == 2", ("-x",))]
)
def test_an_interrupted_run_is_kept_and_is_no_baseline(
    run, pytester: pytest.Pytester, what: str, options: tuple[str, ...]
) -> None:
    pytester.makeconftest(CUT.format(what=what))
    with contextlib.suppress(KeyboardInterrupt):  # pytester raises it again, at the end
        # In the order of the files: the count comes first, and has a record.
        run("--benchmark-save", "cut", *STEPS, *options, "-p", "no:randomly")
    (path,) = find_runs(_results(pytester), "cut")
    stored = load_run(path)
    assert stored.interrupted
    # The case that was cut has no record: it did not fail.
    assert {r.suite: r.outcome for r in stored.records.values()} == {"counts": "ok"}
    (pytester.path / "conftest.py").unlink()
    counts = {"suites": "suites/test_counts.py"}
    refused = run("--benchmark-compare", "--gate", apart=True, **counts)
    assert refused.ret == 2
    refused.stderr.fnmatch_lines(["*no run in * may be a baseline: 0001_cut (it was interrupted)*"])
    run("--benchmark-save", "whole", **counts)
    run("--benchmark-save", "cut-later", **counts)
    later = find_runs(_results(pytester), "cut-later")[0]
    document = json.loads(later.read_text())
    document[KEY]["detail"] = {"interrupted": True}
    later.write_text(json.dumps(seal(document)))
    run("--benchmark-compare", "--gate", **counts).stdout.fnmatch_lines(["*against whole*"])
    gated = run("--benchmark-compare=cut-later", "--gate", apart=True, **counts)
    assert gated.ret == 2
    assert "it was interrupted; name another or compare without --gate" in gated.stderr.str()
    named = run("--benchmark-compare=cut-later", **counts)
    assert named.ret == pytest.ExitCode.OK
    assert "interrupted: not every case was reached" in " ".join(named.stdout.str().split())


def test_the_command_that_accepts_figures_is_this_run_again(run, pytester: pytest.Pytester) -> None:
    counts = {"suites": "suites/test_counts.py"}
    run("--benchmark-save", "base", **counts)
    _adapter(pytester.path / "mine", ["q_proj"])
    result = run("--benchmark-compare", "--gate", "--allow", "new", "--rank", "4", **counts)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    said = " ".join(result.stdout.str().split())
    assert (
        "accept the new figures: pytest -p bench.plugin.suite suites/test_counts.py --model mine "
        "--rank 4 --benchmark-save=NAME, then bench accept NAME --reason WHY"
    ) in said


def test_measured_cases_are_refused_under_xdist(run) -> None:
    result = run("-n", "2", *STEPS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*1 cases: measured cases are refused under pytest-xdist*"])
    result.assert_outcomes(passed=1, errors=1)


def test_running_out_of_memory_is_an_outcome(run, pytester: pytest.Pytester) -> None:
    config = pytester.path / "mine" / "config.json"
    config.write_text(json.dumps({**LLAMA, "vocab_size": 4_000_000, "hidden_size": 64}))
    result = run(*STEPS, "--memory-limit", "0.2", "--benchmark-save", "oom")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1, xfailed=1)
    (step,) = (r for r in load_run(find_runs(_results(pytester))[0]).records.values()
               if r.suite == "measurement")  # fmt: skip
    assert step.outcome == "oom"
    result.stdout.fnmatch_lines(["*oom*"])


def test_collecting_imports_no_torch() -> None:
    """Of every suite here: choosing tests takes seconds, and importing torch as many again."""
    code = (
        "import sys, pytest\n"
        "status = pytest.main(['suites', '--collect-only', '-qq'])\n"
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
    refused = run("--report", "nowhere/page.html", *STEPS, apart=True)
    assert refused.ret == 2
    assert "there is no folder" in refused.stderr.str()
