"""`bench report` and `bench compare`: every format, exit status, and what is written where."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from test_baselines import QUERY, STEP, sample

from bench.baselines import KEY, write_run
from bench.cli import main


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `results` where commands look for it: one that is run there."""
    folder = tmp_path / "results" / "linux-x86_64-cpu"
    write_run(folder, "base", sample("base"))
    document = sample("new")
    document[KEY]["records"][QUERY]["metrics"]["adapted_layers"] = 12
    write_run(folder, "new", document)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def test_a_report_says_what_of_its_baseline_has_no_row(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = sample("fewer")
    gone = list(document["lora_bench"]["records"])[-1]
    del document["lora_bench"]["records"][gone]
    write_run(results / "linux-x86_64-cpu", "fewer", document)
    for format in ("terminal", "markdown", "latex", "csv", "json"):
        assert main(["report", "fewer", "--baseline", "base", "--format", format]) == 0
        out, err = capsys.readouterr()
        told = err if format in ("csv", "json") else out.replace("\\", "")
        assert f"_fewer: 1 case of the baseline: {gone}" in " ".join(told.split())
    assert main(["report", "new", "--baseline", "base"]) == 0
    assert "vanished" not in capsys.readouterr().out


def test_dead_entries_are_told_in_every_format(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = sample("dead")
    record = document[KEY]["records"].pop(QUERY)
    record.update(
        scenario="own", detail={**record["detail"], "adapter": {}, "dead_entries": ["nothing_proj"]}
    )
    document[KEY]["records"]["suites/test_counts.py::test_user_targets[opt-350m-own]"] = record
    write_run(results / "linux-x86_64-cpu", "dead", document)
    for format in ("terminal", "markdown", "latex", "html", "csv", "json"):
        for more in ((), ("--baseline", "base")):
            assert main(["report", "dead", "--format", format, *more]) == 0
            out, err = capsys.readouterr()
            told = err if format in ("csv", "json") else out.replace("\\", "")
            assert "nothing_proj reaches nothing" in " ".join(told.split()), (format, more)


@pytest.mark.parametrize("rounds", [[0.0], [0.0] * 5, [0.0, 0.0, 0.0, 0.1, 0.1], [5e-324] * 5])
def test_a_step_that_took_no_time_has_no_speed(
    results: Path, capsys: pytest.CaptureFixture[str], rounds: list[float]
) -> None:
    """It was too short for the clock; what else is known of it is told."""
    document = sample("short")
    step = document[KEY]["records"][STEP]
    step["metrics"]["step_seconds"] = rounds
    step["metrics"]["forward_seconds"] = rounds
    step["detail"]["tokens_per_step"] = 128
    write_run(results / "linux-x86_64-cpu", "short", document)
    for format in ("terminal", "markdown", "csv", "json", "latex", "html"):
        for more in ((), ("--baseline", "base")):
            assert main(["report", "short", "--format", format, *more]) == 0
            assert capsys.readouterr().out
    assert main(["report", "short", "--format", "json"]) == 0
    rows = map(json.loads, capsys.readouterr().out.splitlines())
    (row,) = (row for row in rows if row["precision"] == "fp32")
    assert row["step_median_seconds"] < 1e-300
    assert row["tokens_per_second"] is None
    assert row["rounds"] == len(rounds)


def test_compare_exits_with_one_where_something_changed(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = results / "verdicts.json"
    assert main(["compare", "base", "new", "--verdict-file", str(file)]) == 1
    assert "FAILED: 1 changed, 8 unchanged." in capsys.readouterr().out
    assert json.loads(file.read_text())["passed"] is False
    write_run(results / "linux-x86_64-cpu", "same", sample("base"))
    assert main(["compare", "base", "same", "--verdict-file", str(file)]) == 0
    assert json.loads(file.read_text())["passed"] is True
    for wrong in (("--threshold", "foo"), ("--allow", "banana")):  # refused, and not passed
        assert main(["compare", "base", "same", "--verdict-file", str(file)]) == 0
        assert main(["compare", "base", "same", *wrong, "--verdict-file", str(file)]) == 2
        assert json.loads(file.read_text())["passed"] is False
    for wrong in (
        ["compare", "base", "same", f"--verdict-file={file}", "--format", "banana"],
        ["compare", "base", "--verdict-f", str(file)],
        ["ab", "--verdict-file", str(file), "--rounds", "many"],
    ):
        assert main(["compare", "base", "same", "--verdict-file", str(file)]) == 0
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
        assert json.loads(file.read_text())["passed"] is False
    assert main(["compare", "base", "same", "--verdict-file", str(file)]) == 0
    assert main(["learn", "--read", "--steps", "1", "--verdict-file", str(file)]) == 2
    assert json.loads(file.read_text())["passed"] is False
    capsys.readouterr()
    assert main(["compare", "base", "new", "--allow", "changed"]) == 0
    assert "changed (allowed)" in capsys.readouterr().out


def test_compare_writes_every_format(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def output(form: str) -> str:
        assert main(["compare", "base", "new", "--format", form]) == 1
        return capsys.readouterr().out

    assert "| changed " in output("markdown")
    assert r"\toprule" in output("latex")
    assert (
        output("csv").splitlines()[1].startswith(f"{QUERY},adapted_layers,count,changed,24,12,0.5")
    )
    lines = [json.loads(line) for line in output("json").splitlines()]
    assert len(lines) == 9
    assert (lines[0]["verdict"], lines[0]["fails"]) == ("changed", True)


def test_report_writes_every_format(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def output(form: str, *runs: str) -> str:
        assert main(["report", *runs, "--format", form]) == 0
        return capsys.readouterr().out

    assert "Run 0002\\_new: " in output("markdown")  # the latest without a name
    assert "Run 0001\\_base: " in output("markdown", "0001")
    assert r"\toprule" in output("latex")
    assert len(output("csv", "base", "new").splitlines()) == 5
    first = json.loads(output("json").splitlines()[0])
    assert (first["trainable"], first["peak_reserved_bytes"]) == (786432, None)
    assert "changed" in output("terminal", "new", "--baseline", "base")
    assert "\x1b" not in output("terminal")


def test_a_file_is_written_whole_and_nothing_is_printed(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = results / "table.md"
    assert main(["report", "new", "--output", str(target)]) == 0
    assert target.read_text(encoding="utf-8").startswith("## LoRA target modules\n")
    assert capsys.readouterr().out == ""


def test_a_terminal_without_our_characters_still_gets_the_table(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["report", "new", "--format", "terminal"]) == 0
    assert b"800 ? 15 ms" in raw.getvalue()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("absent new", "there are: linux-x86_64-cpu/0001_base"),
        ("base new --threshold speed=1%", "speed"),
        ("base new --allow vanishing", "vanished"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(
    results: Path, arguments: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = results / "verdicts.json"
    assert main(["compare", *arguments.split(), "--verdict-file", str(file)]) == 2
    assert not file.exists()
    printed = capsys.readouterr()
    assert reason in printed.err
    assert printed.out == ""


def test_an_unknown_format_is_a_usage_error(results: Path, capsys) -> None:
    with pytest.raises(SystemExit) as wrong:
        main(["compare", "base", "new", "--format", "html"])
    assert wrong.value.code == 2
    assert "'html'" in capsys.readouterr().err


def test_a_broken_run_writes_no_report(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = results / "table.md"
    (results / "linux-x86_64-cpu" / "0003_broken.json").write_text("{")
    assert main(["report", "--output", str(target)]) == 2
    assert "0003_broken" in capsys.readouterr().err
    assert not target.exists()


def test_a_run_is_named_by_its_number(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "2"]) == 0
    assert "new" in capsys.readouterr().out
    assert main(["compare", "linux-x86_64-cpu/1", "2"]) == 1
    assert main(["accept", "1", "--reason", "right"]) == 0
    assert "0001_base may be a baseline now" in capsys.readouterr().out


def test_a_name_that_means_several_runs_says_so(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(results / "structure", "base", sample("other"))
    assert main(["report", "1"]) == 0
    said = "'1' means 2 runs: linux-x86_64-cpu/0001_base, structure/0001_base\n"
    assert capsys.readouterr().err == said
    assert main(["report", "*base"]) == 0
    assert capsys.readouterr().err == ""


def test_a_folder_is_spoken_of_where_one_is_looked_in(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = sorted(str(path) for path in results.glob("*/*.json"))
    (elsewhere := results / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["compare", base, new]) == 1
    assert main(["report", base, "--baseline", new]) == 0
    assert main(["accept", base, "--reason", "right"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["report", str(elsewhere / "none.json")]) == 2
    assert capsys.readouterr().err == f"bench: error: {elsewhere / 'none.json'}: no such file\n"
    assert main(["report", "no-such-run"]) == 2
    assert "no folder results/ here" in capsys.readouterr().err


def test_a_file_that_cannot_be_a_run_is_told_from_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    for name, reason in (
        ("/dev/zero", "cannot be read: it is not a regular file"),
        ("pipe", "cannot be read: it is not a regular file"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("dangling", "no such file"),
        (str(tmp_path), "cannot be read: Is a directory"),
    ):
        assert main(["report", name]) == 2
        assert capsys.readouterr().err == f"bench: error: {name}: {reason}\n"
        assert main(["check", name]) == 2
        assert "Errno" not in capsys.readouterr().err


def test_a_report_against_itself_is_refused_as_a_comparison_is(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("markdown", "html", "csv"):
        assert main(["report", "base", "--baseline", "1", "--format", form]) == 2
        assert "0001_base is held against itself" in capsys.readouterr().err
    asked = ["report", "base", "new", "--baseline", "base", "--format", "json"]
    assert main(asked) == 0  # beside another it is what that is held against
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["verdict"] for row in rows if row["run"] == "0001_base"} == {None}
    assert "changed" in {row["verdict"] for row in rows if row["run"] == "0002_new"}


def test_a_name_that_says_no_format_is_refused(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "new", "--output", "out.xyz"]) == 2
    said = capsys.readouterr().err
    assert "out.xyz: .xyz says no format; those that do: .txt, .md, .csv, .tex, .json" in said
    assert not Path("out.xyz").exists()
    assert main(["report", "new", "--output", "out.xyz", "--format", "csv"]) == 0
    assert main(["report", "new", "--output", "out"]) == 0
    assert Path("out").read_text().startswith("## LoRA target modules")


def test_history_says_what_its_answer_leaves_out(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No step among the cases, and another machine's folder; JSON and a table are two answers."""
    write_run(results / "another", "base", sample("base"))
    asked = ["history", "peak_allocated_bytes"]
    assert main([*asked, "--json"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "no step in 2 cases; --all lists them" in said.err
    assert "the runs of linux-x86_64-cpu, which are most; --machine names another: another" in (
        said.err
    )
    assert main([*asked, "--json", "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main([*asked, "--machine", "another"]) == 0
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        main([*asked, "--json", "--format", "latex"])
    assert "give --json or --format, not both" in capsys.readouterr().err


def test_a_report_against_a_baseline_of_other_cases_is_refused(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = sample("other")
    records = document[KEY]["records"]
    document[KEY]["records"] = {f"{key}-else": record for key, record in records.items()}
    write_run(results / "linux-x86_64-cpu", "other", document)
    for form in ("markdown", "html"):
        assert main(["report", "other", "--baseline", "base", "--format", form]) == 2
        assert "nothing to compare: none of the" in capsys.readouterr().err
    assert main(["report", "new", "other", "--baseline", "base"]) == 0
    assert main(["report", "--plots", str(results.parent / "results" / "another")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (results / "file").write_text("")
    assert main(["report", "--plots", str(results / "file")]) == 2
    assert "this is no folder" in capsys.readouterr().err
