"""What reaches a terminal or a spreadsheet: no command to either, no traceback on a poor one."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from model_folders import write_adapter, write_model
from test_baselines import sample
from warm import Warm

from bench.baselines import write_run
from bench.cli import main
from bench.cli.output import Output, csv_text, fitted, json_lines
from bench.files import strict_json
from bench.reports.layout import COLOURS, Report, Table, terminal
from bench.units import harmless

ESCAPE = "\x1b]0;owned\x07"


def test_control_characters_are_shown_and_not_sent() -> None:
    assert harmless("a\x1b[2Jb\x07\x9b\u202e×\n\tc") == "a\\x1b[2Jb\\x07\\x9b\\u202e×\n\tc"


def test_names_of_models_targets_and_folders_reach_no_terminal_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"mine{ESCAPE}"
    write_model(folder)
    targets = ("--target-modules", f"q_proj,fc1{ESCAPE}")
    main(["targets", str(folder), *targets])
    main(["targets", str(folder), *targets, "--strict"])
    main(["targets", str(tmp_path / f"none{ESCAPE}")])
    main(["report", f"none{ESCAPE}"])
    with pytest.raises(SystemExit):
        main(["targets", "x", f"--none{ESCAPE}"])
    out, err = capsys.readouterr()
    assert "fc1\\x1b]0;owned\\x07" in out
    for text in (out, err):
        assert text.replace("\n", "").isprintable(), text


def test_no_name_begins_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of models, folders, entries, tensors, keys: it would say there what it likes."""
    import numpy as np
    from safetensors.numpy import save_file

    line = "\nforged: yes"
    plain, model = write_model(tmp_path / "plain"), write_model(tmp_path / f"m{line}")
    quantized = write_model(tmp_path / "q", quantization_config={"quant_method": f"x{line}"})
    adapter, many, recipe = tmp_path / f"a{line}", tmp_path / "many", tmp_path / "recipe.yaml"
    for folder, targets in ((adapter, ["q_proj", f"z{line}"]),
                            (many, [f"model.layers.{i}.z{line}" for i in range(30)])):  # fmt: skip
        folder.mkdir()
        write_adapter(folder, targets)
    named = f"base_model.model.model.layers.0.z{line}.lora_A.weight"
    save_file({named: np.full((4, 32), np.nan, np.float32)}, adapter / "adapter_model.safetensors")
    keys = {"model_name_or_path": str(plain), "finetuning_type": "lora", "lora_target": "q_proj",
            "stage": "sft", f"more{line}": 1}  # fmt: skip
    recipe.write_text("\n".join(f"{json.dumps(key)}: {json.dumps(keys[key])}" for key in keys))
    dead, save = ("--target-modules", f"q_proj,z{line}"), ("--modules-to-save", f"z{line}")
    commands = [
        ["check", str(adapter), "--model", str(model), "--weights", "--no-gradients"],
        ["check", str(adapter), "--no-gradients"],
        ["check", str(recipe), "--no-gradients"],
        *(["targets", str(model), *dead, *save, "--modules", "--strict", "--format", form]
          for form in ("terminal", "markdown", "latex")),
        ["targets", str(plain), "--adapter", str(many)],
        ["targets", str(plain), "--adapter", str(adapter)],
        ["targets", str(plain), *dead, "--method", "ia3"],
        ["targets", str(quantized), "--target-modules", "q_proj"],
        ["explain", str(quantized), "--trainable", "1000"],
        ["methods", str(quantized), *dead, "--budget", "1000"],
        ["memory", str(model), *dead, *save, "--seq-len", "8"],
        ["report", "--output", f"z{line}/x"],
        ["ab", "--baseline-env", f"z{line}"],
        ["learn", "--weights", str(tmp_path / f"z{line}")],
        ["list", f"z{line}"],
    ]  # fmt: skip
    for command in commands:
        with contextlib.suppress(SystemExit):
            main(command)
        text = "".join(capsys.readouterr())
        assert "forged: yes" in text, command
        assert not re.search(r"^\s*forged", text, re.MULTILINE), command


def test_the_colours_of_a_report_reach_a_terminal_and_no_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = tuple((style,) for style in COLOURS)
    text = terminal(Report("t", (), (Table("", ("h",), rows, styles=tuple(COLOURS)),)), colour=True)
    assert re.findall(r"\x1b\[(\d+)m", text) == ["31", "0", "32", "0", "33", "0", "90", "0"]
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    for screen in (True, False):
        monkeypatch.setattr(stream, "isatty", lambda screen=screen: screen)
        Output(stream, "standard output").write(text)
    stream.flush()
    sent = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert sent == text + text.replace("\x1b", "\\x1b")


def test_a_cell_is_shown_as_it_is_whatever_it_says() -> None:
    """No markup, no emoji by name, no highlighted number, two columns a wide character."""
    cells = ("[red]x[/] :smile: 10%", "模型", f"q{ESCAPE}\n\t", "a" * 12)
    table = Table("", ("what", "n"), tuple((cell, "1") for cell in cells))
    report = Report("t", (), (table,))
    text = terminal(report, colour=True)
    assert text == terminal(report)
    assert text.replace("\n", "").isprintable()
    ends = [sum(2 if c > "\u3000" else 1 for c in line) for line in text.splitlines()[4:]]
    assert len(ends) == len(cells)
    assert len(set(ends)) == 1
    assert cells[0] in text
    assert r"q\x1b]0;owned\x07\n\t" in text


def test_the_longest_text_wraps_in_its_column_while_it_has_room() -> None:
    why = "nothing recorded explains it: same libraries, same roles"
    report = Report("t", (), (Table("", ("case", "why"), (("one", why), ("two", "no"))),))
    assert terminal(report, 46).splitlines()[2:] == [
        "case  why",
        "----  ----------------------------------------",
        "one   nothing recorded explains it: same",
        "      libraries, same roles",
        "two   no",
    ]  # fmt: skip
    word = "suites/test_parameters.py::test_of_a_model"  # stays whole
    grouped = terminal(Report("t", (), (Table("", ("case", "why"), (("one", word),)),)), 46)
    assert [line.strip("- ") for line in grouped.splitlines()[2:]] == ["why", "", "one", word]


def test_no_cell_of_a_csv_table_is_a_formula() -> None:
    cells = ["=1+1", "+1", "-1", "@x", "\tx", "plain", -1.5]
    table = csv_text(["cell"], ([cell] for cell in cells))
    written = [row[0] for row in csv.reader(io.StringIO(table))][1:]
    assert written == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "plain", "-1.5"]


def test_a_models_name_is_no_formula_in_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = sample()
    for record in document["lora_bench"]["records"].values():
        record["model"] = "=cmd|' /C calc'!A0"
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results", "formula", document)
    assert main(["report", "formula", "--format", "csv"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert not [cell for row in rows for cell in row if cell.startswith("=")]
    assert any(cell.startswith("'=cmd") for row in rows for cell in row)


@pytest.mark.parametrize(
    ("redirected", "variables", "status"),
    [
        (">&-", {}, 2),
        (">&- 2>&-", {}, 2),
        ("2>&-", {}, 0),
        (">/dev/full", {}, 2),
        ("", {"COLUMNS": "1"}, 0),
        ("", {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}, 0),
    ],
)
def test_a_poor_terminal_ends_in_no_traceback(
    tmp_path: Path, redirected: str, variables: dict[str, str], status: int
) -> None:
    write_run(tmp_path / "results", "first", sample())
    command = f'"{sys.executable}" -m bench report --format terminal {redirected}'
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == status, output
    assert "Traceback" not in output
    if status == 0:
        lines = done.stdout.decode().splitlines()
        assert len(lines) > 10
        assert max(map(len, lines)) > 20  # not a column of single words
    elif "2>" not in redirected:
        assert output.startswith("bench: error: ")
        assert output.count("\n") == 1


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full"])
def test_what_nobody_hears_costs_no_answer(tmp_path: Path, redirected: str) -> None:
    """`bench history` says first whose runs it shows."""
    for number, machine in enumerate(("one", "other")):
        write_run(tmp_path / "results" / machine, f"run{number}", sample())
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path])
    command = f'"{sys.executable}" -m bench history peak_allocated_bytes --all'
    heard, unheard = (
        subprocess.run(
            ["sh", "-c", f"{command} {way}"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
            capture_output=True, text=True, check=False,
        )
        for way in ("", redirected)
    )  # fmt: skip
    assert "--machine names another" in heard.stderr
    assert (unheard.returncode, unheard.stdout) == (0, heard.stdout)
    assert "1 run of" in heard.stdout


DEAD = ("opt-125m", "--target-modules", "q_proj,nope")
UNREAD = {
    "check": (1, ("check", "adapter_config.json", "--model", "opt-125m", "--no-gradients")),
    "targets": (1, ("targets", *DEAD, "--strict")),
    "compare": (1, ("compare", "before", "after")),
    "list": (0, ("list", "models")),
    "help": (0, ("--help",)),
    "wrong": (2, ("targets", "none")),
}


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
@pytest.mark.parametrize(
    ("name", "both"),
    [
        *(
            pytest.param(name, False, marks=[pytest.mark.evidence] * (name == "check"))
            for name in UNREAD
        ),
        ("check", True),
        ("wrong", True),
    ],
)
def test_the_verdict_decides_where_nobody_reads_it(
    name: str, both: bool, tmp_path: Path, warm_process: Warm
) -> None:
    """As in `bench ... | head -1`, the reader gone before the first character: what failed fails,
    what holds holds, and nothing is said of it. Of those that import torch one is started."""
    status, arguments = UNREAD[name]
    adapter = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "nope"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    worse = sample("after")
    for record in worse["lora_bench"]["records"].values():
        if "trainable_parameters" in record["metrics"]:
            record["metrics"]["trainable_parameters"] += 1
    for run_name, document in (("before", sample("before")), ("after", worse)):
        write_run(tmp_path / "results", run_name, document)
    reader, writer = os.pipe()
    os.close(reader)
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path])
    forked = name == "targets" or (name == "check" and both)
    python = warm_process.python if forked else sys.executable
    done = subprocess.run(
        [python, "-m", "bench", *arguments], cwd=tmp_path, check=False, text=True,
        env={**os.environ, "PYTHONPATH": path}, stdout=writer,
        stderr=writer if both else subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == status, done.stderr
    if not both:
        assert (done.stderr == "") == (status < 2), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["targets", "check"])
def test_colours_in_a_name_are_shown_not_sent(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that the tool itself uses too, and a line break."""
    file = tmp_path / "adapter_config.json"
    names = ["q_proj", "a\x1b[31mb\nc"]
    file.write_text(json.dumps({"peft_type": "LORA", "r": 8, "target_modules": names}))
    given = ["--adapter", str(file), "opt-125m"]
    if command == "check":
        given = [str(file), "--model", "opt-125m", "--no-gradients"]
    main([command, *given])
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert any(r"a\x1b[31mb\nc" in line and "reaches nothing" in line for line in said.splitlines())


LONG = (
    "  assumed: weights in bf16, and a great many things that nobody reads to the end of a line\n"
    "short\n"
    "  bench memory model --target-modules q_proj,k_proj --precision nf4 --batch-size 1 --gpu T4"
)


def test_a_long_line_goes_on_further_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal; a command to copy stays in one piece, and so does everything in a pipe."""
    monkeypatch.setenv("COLUMNS", "80")
    assert fitted(LONG) == LONG
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    first, second, short, command = fitted(LONG).splitlines()
    assert first.startswith("  assumed: weights in bf16")
    assert second.startswith("    ")
    assert max(map(len, (first, second, short))) <= 80
    assert f"{first} {second.strip()}\n{short}\n{command}" == LONG
    red = "\x1b[31m" + "word " * 15 + "\x1b[0m"
    assert fitted(red) == red  # what is not seen takes no room
    whole = "x" * 100
    assert fitted(f"  {whole} end") == f"  {whole}\n    end"


def test_json_is_json_whatever_the_figures() -> None:
    """What JSON has no number for, such as the infinity of a configuration, is a word."""
    told = json_lines([{"a": [math.inf, 1.5], "b": {"c": math.nan}}, {}])
    first, second = map(strict_json, told.splitlines())
    assert (first, second) == ({"a": ["inf", 1.5], "b": {"c": "nan"}}, {})
