"""What commands understand and say, in a person's words."""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_folders import write_model
from test_baselines import QUERY, run_with, sample
from verdict_edits import metric

from bench import process
from bench.adapters.config import written_targets
from bench.baselines import compare, gate, write_run
from bench.cli import main
from bench.cli.options import Once
from bench.cli.output import format_for
from bench.cli.parser import COMMANDS
from bench.files import FIXTURES
from bench.predict.gpus import gpu_with_memory
from bench.reports.layout import markdown
from bench.reports.verdicts import verdict_report
from bench.training.options import StepOptions


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
        (r".*\.layers\.\d{1,2}\.self_attn\.q_proj", r".*\.layers\.\d{1,2}\.self_attn\.q_proj"),
        ("q_proj, self_attn.v_proj", ("q_proj", "self_attn.v_proj")),
        ("re:model.q_proj", "model.q_proj"),
        ("All-Linear", "All-Linear"),
    ],
)
def test_an_expression_is_known_without_a_mark(text: str, meant: object) -> None:
    assert written_targets(text) == meant


@pytest.mark.parametrize(
    ("what", "one"),
    [
        ("models", "opt-350m"),
        ("scenarios", "query-value"),
        ("gpus", "t4"),
        ("precisions", "nf4-dq"),
        ("methods", "ia3"),
    ],
)
def test_what_options_take_can_be_listed(
    what: str, one: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", what]) == 0
    assert one in [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert main(["list", what, "--json"]) == 0
    told = capsys.readouterr()
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert one in [row["name"] for row in rows]
    assert ("left out, with no closed form" in told.err) == (what == "methods")


def test_models_of_one_last_name_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, layers in (("a", 2), ("b", 3)):
        write_model(tmp_path / name / "tiny", num_hidden_layers=layers)
    a, b = (str(tmp_path / name / "tiny") for name in "ab")
    asked = ["--target-modules", "q_proj"]
    assert main(["targets", a, b, *asked, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    reached = [(each["model"], each["adapted_layers"]) for each in told]
    assert reached == [("a/tiny", 2), ("b/tiny", 3)]
    assert main(["targets", a, *asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "tiny"
    assert main(["targets", a, a, *asked]) == 2
    assert "is given twice" in capsys.readouterr().err
    assert main(["targets", a, f"{tmp_path}/b/../a/tiny", *asked]) == 2
    assert "are the same" in capsys.readouterr().err


def test_help_lists_its_choices_and_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["memory", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for choice in ("nf4-dq", "rtx-4090", "adamw-8bit", "Exit status: 1"):
        assert choice in said, choice


def test_every_module_adapted_and_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, num_hidden_layers=1)
    asked = ["targets", str(tmp_path), "--target-modules", r".*\.(q|v)_proj", "--modules"]
    assert main([*asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    layer = "model.layers.0"
    assert {m["name"] for m in answer["adapted_modules"]} == {
        f"{layer}.self_attn.q_proj",
        f"{layer}.self_attn.v_proj",
    }
    assert {m["name"] for m in answer["missed_modules"]} == {
        *(f"{layer}.self_attn.{name}_proj" for name in "ko"),
        *(f"{layer}.mlp.{name}_proj" for name in ("gate", "up", "down")),
        "lm_head",
    }
    assert main(asked) == 0
    assert f"missed   {layer}.self_attn.k_proj  key" in capsys.readouterr().out
    assert main([*asked, "--format", "markdown"]) == 0
    assert r"| model.layers.0.self\_attn.k\_proj | key" in capsys.readouterr().out


def test_a_report_is_a_table_on_a_terminal_and_markdown_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert format_for(None, None) == "terminal"
    assert format_for(None, Path("table.md")) == "markdown"
    assert format_for("csv", None) == "csv"
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert format_for(None, None) == "markdown"


def test_a_gigabyte_of_a_card_is_a_gibibyte() -> None:
    assert gpu_with_memory("24GB").memory_bytes == gpu_with_memory("24 GiB").memory_bytes


def test_other_names_are_said_and_no_digest() -> None:
    base = run_with()
    new = run_with(metric(QUERY, "ledger_digest", "255a255a255a255a"))
    old = run_with(metric(QUERY, "ledger_digest", "f2c5f2c5f2c5f2c5"))
    verdicts = compare(old, new)
    said = markdown(verdict_report(verdicts, gate(verdicts), base, new))
    assert "names of the adapted layers" in said
    assert "not the same" in said
    assert "255a" not in said


def store_two(folder: Path) -> None:
    """The sample as `base`, and as `new` with a layer more."""
    document = sample()
    document["lora_bench"]["records"][QUERY]["metrics"]["adapted_layers"] += 1
    write_run(folder, "base", sample())
    write_run(folder, "new", document)


def test_the_advice_fits_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store_two(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "base", "new"]) == 1
    assert "bench accept 0002_new --reason WHY" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "asked",
    [
        ("targets", "opt-350m"), ("memory", "opt-350m"), ("choose", "opt-350m", "--gpu", "T4"),
        ("compare", "a", "b"), ("report",), ("ab",), ("check", "file.yaml"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("last", [True, False])
def test_two_formats_are_one_too_many(
    asked: tuple[str, ...], last: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = ["--format", "github" if asked[0] == "check" else "latex"]
    try:
        status: object = main(
            [*asked, *(formats if last else ()), "--json", *(() if last else formats)]
        )
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert "give --json or --format, not both" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_of_the_formats_wherever_it_is_an_option(command: str) -> None:
    parser = argparse.ArgumentParser()
    parser.register("action", None, Once)
    found: set[str] = set()

    def add(*names: str, **options: Any) -> argparse.Action | None:  # none of the others is needed
        asked = {"--json", "--format"} & {*names}
        found.update(asked)
        return parser.add_argument(*names, **options) if asked else None

    COMMANDS[command].add_options(add)
    if not found:
        return
    for words in (["--json"], ["--format", "json"], ["--json", "--format", "json"]):
        assert parser.parse_args(words).format == "json"


@pytest.mark.parametrize(
    "asked",
    [
        ("targets", "opt-350m"),
        ("targets", "opt-350m", "--method", "ia3"),
        ("memory", "opt-350m", "--scenario", "query-value", "--seq-len", "8"),
        ("explain", "opt-350m", "--trainable", "786432"),
        ("list", "gpus"),
    ],
)
def test_format_json_is_json(asked: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    statuses = main([*asked, "--json"]), main([*asked, "--format", "json"])
    first, second = (out.splitlines() for out in _halves(capsys.readouterr().out))
    assert statuses[0] == statuses[1]
    assert first == second
    assert all(isinstance(json.loads(line), dict) for line in first)


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def test_an_option_of_one_value_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["targets", "opt-350m", "--adapter", "a.json", "--adapter", "b.json"])
    assert ended.value.code == 2
    assert "--adapter is given twice" in capsys.readouterr().err


def test_a_module_in_the_place_of_a_model_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("q_proj", "q_proj,v_proj", "all-linear"):
        assert main(["targets", "opt-125m", name]) == 2
        said = capsys.readouterr().err
        assert said == f"bench: error: {name} is no model: write --target-modules {name}\n"
    assert main(["targets", "opt-125m", "opt-126m"]) == 2
    assert "did you mean opt-125m" in capsys.readouterr().err


def test_a_folder_of_results_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accept", "0001", "--reason", "because", "--results", "nores"]) == 2
    assert (
        "no stored run in nores: there is no such folder; name the one" in capsys.readouterr().err
    )


def test_a_history_of_one_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results" / "here", "base", sample())
    assert main(["history", "peak_allocated_bytes", "--plot", "history.svg"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 run of" in said
    assert "0001_base: 0 steps" in said
    assert "One run has nothing before it to differ from" in said
    assert "one run: nothing to hold it against" in (tmp_path / "history.svg").read_text()


def test_a_run_held_against_itself_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results", "base", sample())
    assert main(["compare", "base", "0001"]) == 2
    assert "0001_base is held against itself" in capsys.readouterr().err


def test_the_advice_names_a_run_so_that_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its file where it lies elsewhere than in results/: the command is tried as it is given."""
    store_two(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "elsewhere/0001_base.json", "elsewhere/0002_new.json"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "bench accept elsewhere/0002_new.json --reason WHY" in said
    assert main(["accept", "elsewhere/0002_new.json", "--reason", "WHY"]) == 0
    runs = [run_with(), run_with(metric(QUERY, "adapted_layers", 25))]
    verdicts = compare(*runs)
    stored = "pytest suites/ --benchmark-storage=elsewhere --benchmark-save=NAME"
    told = markdown(verdict_report(verdicts, gate(verdicts), *runs, save_command=stored))
    assert "bench accept NAME --reason WHY --results elsewhere" in told


def test_an_interrupted_run_is_not_proposed_as_a_baseline() -> None:
    base, new = run_with(), run_with(metric(QUERY, "adapted_layers", 12))
    verdicts = compare(base, new)
    told = markdown(verdict_report(verdicts, gate(verdicts), base, new))
    assert "To accept the new figures" in told
    cut = replace(new, interrupted=True)
    assert "accept" not in markdown(verdict_report(verdicts, gate(verdicts), base, cut))


def test_an_unknown_atlas_is_told_with_what_may_stand_instead(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["atlas", "--diff", "a", "b"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("5.23.0; or give a folder that holds one\n")


def test_an_id_keeps_every_digit() -> None:
    close = [StepOptions(max_grad_norm=value).label() for value in (0.123456789, 0.123456788)]
    assert len(set(close)) == 2
    close = [StepOptions(learning_rate=value).label() for value in (1.23456789e-4, 1.23456788e-4)]
    assert len(set(close)) == 2


def test_a_hazard_is_failed_on_or_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(FIXTURES / "readers" / "trl" / "defaults.yaml")
    assert main(["check", path, "--fail-on", "no-gradient", "--allow", "no-gradient"]) == 2
    assert "no-gradient is in fail-on and in allow" in capsys.readouterr().err


def test_a_verdict_file_is_checked_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"mine": 1}')
    asked = ["learn", "smollm2", "--weights", "nowhere", "--compare", "--verdict-file", str(file)]
    assert main(asked) == 2
    assert str(file) in capsys.readouterr().err
    assert file.read_text() == '{"mine": 1}'


CUT = """
import os, signal, threading, weakref
import bench.cli.choose as command
from bench.cli import main

class Held: pass

def run(options):
    held = Held()
    mark = weakref.ref(held, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del held  # Python drops what the signal raises in there
    {then}

command.run = run
raise SystemExit(main(["choose", "opt-125m"]))
"""


@pytest.mark.parametrize("then", ["raise KeyError('what was cut')", "threading.Event().wait()"])
def test_a_signal_in_a_finalizer_ends_a_command_all_the_same(then: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CUT.format(then=then)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (143, "")


SELDOM = """
import atexit, gc, sys
atexit.register(lambda: print(*gc.get_threshold(), gc.get_freeze_count() > 0))
from lora_target_bench.__main__ import main
sys.argv = ["bench", "--help"]
main()
"""


def test_a_command_of_its_own_collects_garbage_seldom() -> None:
    """Nor does it take the libraries apart at its end; in somebody else's process `main` leaves
    the collector alone."""
    told = subprocess.run(
        [sys.executable, "-c", SELDOM], capture_output=True, text=True, check=True
    ).stdout
    assert told.splitlines()[-1] == "{} {} {} True".format(*process.SELDOM)
    before = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(700, 10, 10)
    assert main(["targets", "no-such-model"]) == 2
    assert gc.get_threshold() == (700, 10, 10)
    gc.set_threshold(*before[0])
    assert gc.get_freeze_count() <= before[1]  # of what was frozen some may end by itself
