"""The options of `pytest suites/`: refused in a line, or honoured."""

from __future__ import annotations

import json
import shutil

import pytest
from model_folders import write_adapter, write_model
from suite_runs import STEPS, results_of

from bench.baselines import find_runs, load_run
from bench.baselines.accepted import accept, no_baseline
from bench.baselines.storage import named
from bench.units import format_bytes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "nf5"], "unknown precision 'nf5': did you mean nf4"),
        (["--scenario", "qurey"], "unknown scenario 'qurey': did you mean query"),
        (["--adapter", "a.json", "--adapter", "b.json"], "--adapter is given twice"),
        (
            ["--minimum-coverage", "0.9", "--minimum-coverage=0.1"],
            "--minimum-coverage is given twice",
        ),
        (["--cluster", "a:1", "--cluster", "b:1"], "--cluster is given twice"),
        (["--seq-len", "8", "--seq-len", "16"], "--seq-len is given twice"),
        (["--benchmark-compare-fail=mean:5%"], "--benchmark-compare-fail has no effect"),
        (
            ["--benchmark-compare", "--gate", "--benchmark-only"],
            "--benchmark-only does not go with",
        ),
        (["--auto-class", "Nope", "--target-modules", "q_proj"], "'Nope'"),
        (["--auto-class", "BertForMaskedLM", "--target-modules", "q_proj"], "BertForMaskedLM"),
        (["--report", ""], "--report is given empty"),
        (["--precision="], "--precision is given empty"),
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
        (["--target-modules", ""], "--target-modules is given empty"),
        (["--rank", "0"], "--rank must be a whole number of at least 1"),
        (["--model", "opt-35m"], "unknown architecture 'opt-35m': did you mean opt-350m"),
        (["--model", "./nowhere"], "nowhere"),
        (["--benchmark-compare"], "no stored run in"),
        (["--gate"], "--gate needs --benchmark-compare"),
        (
            ["--gate", "--benchmark-compare", "--collect-only"],
            "--gate: --collect-only runs no case",
        ),
        (["--verdict-file", "v.json"], "--verdict-file needs --benchmark-compare"),
        (["--rounds", "99999999999"], "--rounds is 99,999,999,999: 100,000 is most"),
        (["--check-loss", "99999999999"], "--check-loss is 99,999,999,999"),
        (["--batch-size", "99999999999"], "batch_size is 99,999,999,999"),
        (["--benchmark-compare="], "--benchmark-compare= names no run"),
        (["--model", ""], "--model is given empty"),
        (
            ["--model", "opt-125m", "--target-modules", "q_proj", "--optional", "q_porj"],
            "unknown entry in --optional: 'q_porj'",
        ),
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
def test_wrong_option_ends_with_status_2(
    run, options: list[str], said: str, pytester: pytest.Pytester
) -> None:
    """And an earlier run's verdict stands for this one no more."""
    plugins = options[0] in {"-n", "-p"}  # others than ours
    earlier = pytester.path / "v.json"
    earlier.write_text(json.dumps({"passed": True, "verdicts": []}))
    file = () if "--verdict-file" in options else ("--verdict-file", "v.json")
    result = run(*options, *file, apart=plugins, bare=True)
    assert json.loads(earlier.read_text())["passed"] is False
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
    write_model(pytester.path / "mine", max_position_embeddings=16)
    refused = run("--precision", "fp32", "--seq-len", "17")
    assert refused.ret == 2
    output = refused.stdout.str() + refused.stderr.str()
    assert "error: --seq-len: sequence length 17: mine has positions for 16 tokens" in output
    assert "Traceback" not in output
    refused.assert_outcomes()
    fits = run("--precision", "fp32", "--rounds", "1", "--seq-len", "16")
    assert fits.ret == pytest.ExitCode.OK


def test_a_model_that_needs_its_own_code_is_no_fault_of_the_length(
    run, pytester: pytest.Pytester
) -> None:
    own = {"AutoConfig": "code_of_mine.Config"}
    write_model(pytester.path / "mine", model_type="mine", auto_map=own)
    refused = run("--precision", "fp32", "--target-modules", "q_proj")
    assert refused.ret == 2
    output = refused.stdout.str() + refused.stderr.str()
    assert "error: mine: needs code from its own repository" in output
    assert "--seq-len" not in output


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


def test_pytest_benchmarks_own_options_work(run, pytester: pytest.Pytester) -> None:
    shown = ("--benchmark-columns=min,rounds", "--benchmark-json=all.json", "--benchmark-autosave")
    result = run(*STEPS, *shown)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.re_match_lines([r"Name \(time in \w+\) +Min +Rounds *$"])
    (benchmark,) = json.loads((pytester.path / "all.json").read_text())["benchmarks"]
    assert len(benchmark["stats"]["data"]) == 5
    (path,) = results_of(pytester).glob("0001_*.json")
    assert "unversioned" in path.name  # pytest-benchmark's name: commit and time
    assert len(load_run(path).records) == 2


def test_a_benchmark_json_that_cannot_be_written_costs_no_measurement(
    run, pytester: pytest.Pytester
) -> None:
    """What can be known is told before anything is measured; else the run is stored, and fails."""
    saved = ("--benchmark-save", "x", "--model", "mine", *STEPS)
    absent = run(*saved, "--benchmark-json=no/such/x.json", apart=True)
    assert absent.ret == 2
    assert "error: --benchmark-json no/such/x.json: there is no folder" in absent.stderr.str()
    assert not (pytester.path / "results").exists()
    result = run(*saved, "--benchmark-json=/dev/full", apart=True)
    assert result.ret == 2
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    result.stderr.fnmatch_lines(["*error: --benchmark-json /dev/full: No space left on device"])
    (path,) = find_runs(results_of(pytester), "x")
    assert len(load_run(path).records) == 2
    assert not (results_of(pytester) / "accepted.json").exists()


def test_the_first_autosaved_run_says_how_there_is_a_baseline(
    run, pytester: pytest.Pytester
) -> None:
    """There is none that --gate could hold it against: a name or `bench accept` makes one, after
    which the next autosaved run has one, and the sentence is another."""
    counts = {"suites": "suites/test_counts.py"}
    said = run("--benchmark-autosave", **counts).stdout.str()
    (path,) = results_of(pytester).glob("0001_*.json")
    assert (
        "it is no baseline for later runs: no gate has judged it. There is no baseline "
        "here yet, and --benchmark-save=NAME makes the first. Where its figures are right: bench "
        f"accept {named(path)} --reason WHY"
    ) in said
    assert accept(path, "looked at")[0].exists()
    gated = run("--benchmark-autosave", "--benchmark-compare", "--gate", **counts)
    assert gated.ret == pytest.ExitCode.OK
    assert "it is no baseline" not in gated.stdout.str()
    (second,) = results_of(pytester).glob("0002_*.json")
    assert not no_baseline(load_run(second))
    without = run("--benchmark-autosave", **counts).stdout.str()
    assert "no gate has judged it. Where its figures are right" in without


@pytest.mark.evidence
def test_reading_the_weights_is_told_on_a_terminal(run, pytester: pytest.Pytester) -> None:
    """They are read whole before anything is measured; the line is gone when they are."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = write_model(pytester.mkdir("base"))
    config = AutoConfig.from_pretrained(folder)
    weights = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    save_file({key: t.clone() for key, t in weights.items()}, folder / "model.safetensors")
    size = format_bytes((folder / "model.safetensors").stat().st_size)
    shutil.copy(folder / "model.safetensors", pytester.path / "mine")
    refused = run("--model", "mine", *STEPS, "--weights", "mine", apart=True)
    assert refused.ret == 2
    refused.stderr.fnmatch_lines(["*--weights mine: an adapter is in that folder*"])
    asked = ("--adapter", "mine", "--weights", "base", "--benchmark-save", "x",
             "-k", "nosuch or test_step", *STEPS)  # fmt: skip
    pytester.makeconftest(
        "def pytest_sessionstart(session):\n"
        "    reporter = session.config.pluginmanager.get_plugin('terminalreporter')\n"
        "    reporter.isatty = type(reporter.isatty)(True)\n"
    )
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "rms_norm_eps": 0.5}))
    given = json.loads((pytester.path / "mine" / "config.json").read_text())
    given["rms_norm_eps"] = 0.25
    (pytester.path / "mine" / "config.json").write_text(json.dumps(given))
    done = run("-q", *asked)
    assert done.ret == 0, done.stdout.str()
    told = "--weights base: its config.json is not mine's: rms_norm_eps 0.5 -> 0.25"
    assert told in done.stdout.str()
    clear = "\r\x1b[K"
    told = f"{clear}reading the weights: {format_bytes(0)} of {size}{clear}"
    assert told in done.stdout.str().replace("\n", "\r")  # as which the lines are read back


def test_an_option_of_an_ini_file_is_refused_as_well(run, pytester: pytest.Pytester) -> None:
    file = pytester.path / "pyproject.toml"
    file.write_text(
        file.read_text().replace("addopts = [", "addopts = ['--benchmark-disable-gc', ")
    )
    result = run(suites="suites/test_counts.py", apart=True)
    assert result.ret == 2
    output = result.stdout.str() + result.stderr.str()
    assert "--benchmark-disable-gc has no effect on these suites" in output


def test_what_is_collected_is_run_or_deselected(run, pytester: pytest.Pytester) -> None:
    """No test is taken away without being counted, nor kept where it has no subject."""
    (pytester.path / "suites" / "test_more.py").write_text(
        "import pytest\n\n"
        "@pytest.mark.parametrize('more', ['a', 'b'])\n"
        "def test_more(subject, more, record):\n"
        "    pass\n"
    )
    result = run("-m", "not measured")
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed", "deselected"}
    result.stdout.fnmatch_lines([f"collected {sum(outcomes.values())} items / *"])


def test_one_step_is_not_stored_as_a_measured_case(run, pytester: pytest.Pytester) -> None:
    refused = run("--benchmark-save", "base", "--benchmark-disable", *STEPS)
    assert refused.ret == 2
    refused.stdout.fnmatch_lines(["*--benchmark-disable takes one step*nothing to store*"])
    assert not list(pytester.path.glob("results/*/*.json"))
    counted = run("--benchmark-save", "base", "--benchmark-disable", suites="suites/test_counts.py")
    assert counted.ret == pytest.ExitCode.OK
    counted.stdout.fnmatch_lines(["*= stored run =*", "stored run: *"])  # no table is announced
    counted.stdout.no_fnmatch_line("*scenarios × precisions*")
    counted.stdout.fnmatch_lines(["accepted as the first baseline here: *"])


def test_the_way_out_of_xdist_works_where_an_ini_file_asks_for_it(
    run, pytester: pytest.Pytester
) -> None:
    file = pytester.path / "pyproject.toml"
    file.write_text(file.read_text().replace("addopts = [", "addopts = ['-n2', "))
    counts = ("--benchmark-save", "base", "--model", "mine")
    refused = run(*counts, suites="suites/test_counts.py", apart=True)
    assert refused.ret == 2
    assert "Run it with -n 0" in refused.stdout.str() + refused.stderr.str()
    done = run(*counts, "-n", "0", suites="suites/test_counts.py", apart=True)
    assert done.ret == pytest.ExitCode.OK


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


def test_the_path_of_an_adapter_reaches_no_terminal_raw(run, pytester: pytest.Pytester) -> None:
    """pytest shows what a failed test has printed as it is."""
    folder = pytester.path / "e\x1b[31mred"
    write_model(folder)
    write_adapter(folder, ["q_proj", "dead"])
    counts = {"suites": "suites/test_counts.py", "bare": True}
    result = run("--model", str(folder), **counts)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "adapter_config.json" in result.stdout.str()
    assert "\x1b" not in result.stdout.str()


def test_measured_cases_are_refused_under_xdist(run) -> None:
    result = run("-n", "2", *STEPS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*1 cases: measured cases are refused under pytest-xdist*"])
    result.assert_outcomes(passed=1, errors=1)


def test_one_step_of_each_measured_case_runs_under_xdist(run) -> None:
    """Where nothing is timed, nothing is disturbed; each process has a server of its own."""
    result = run("-n", "2", "--benchmark-disable", *STEPS)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2)
