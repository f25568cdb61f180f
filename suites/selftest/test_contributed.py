"""Measured steps that people send: written by the command, read as data alone."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_folders import write_model
from warm import Warm

from bench.cli import main
from bench.errors import BenchError
from bench.predict.contributed import MOST_BYTES, append_step, load_steps


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, warm_process: Warm) -> Path:
    """What `bench memory --measure --record` wrote, of a real step."""
    folder = write_model(tmp_path_factory.mktemp("model"))
    file = folder / "measured.jsonl"
    asked = ["memory", str(folder), "--target-modules", "q_proj", "--seq-len", "8", "--measure"]
    for precision in ("fp32", "bf16"):
        with warm_process.in_place():
            assert main([*asked, "--precision", precision, "--record", str(file)]) == 0
    return file


def test_what_was_written_is_read_and_agrees(sent: Path, capsys) -> None:
    steps = load_steps(sent)
    assert [step.case.precision for step in steps] == ["fp32", "bf16"]
    assert [step.difference for step in steps] == [0, 0]
    assert str(sent.parent) not in sent.read_text()
    capsys.readouterr()
    assert main(["published", "--received", str(sent)]) == 0
    said = capsys.readouterr().out
    assert "cpu, bf16: 1 step, mean 0.00 %, worst +0.00 %" in said


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(line: dict[str, Any]) -> None:
        *way, last = path
        for key in way:
            line = line[key]
        line[last] = value

    return change


WRONG = {
    "a path": (_set("case", "model", value="/etc/passwd"), "line 1: the case names a folder"),
    "a raw name": (_set("case", "model", value="a\x1b[31mb"), "line 1: .* not a short name"),
    "loop": (_set("case", "step", "loop", value="zzz"), "line 1: unknown loop 'zzz'"),
    "rank": (_set("case", "adapter", "r", value=10**30), "line 1: r must be a whole number"),
    "kind": (_set("kind", value="shell"), "kind 'shell'"),
    "more": (_set("run", value="rm"), "unknown key in .* line 1: 'run'"),
    "a folder": (_set("case", "weights", value="/etc"), "names a folder"),
    "code": (_set("case", "code", value="evil"), "names a folder"),
    "precision": (_set("case", "precision", value="fp7"), "unknown precision 'fp7'"),
    "text": (_set("measured", "peak_allocated_bytes", value="1"), "a number of bytes, found '1'"),
    "below": (
        _set("predicted", "peak_by_phase", "forward", value=-5),
        "a number of bytes, found -5",
    ),
    "bool": (
        _set("measured", "peak_by_phase", "forward", value=True),
        "a number of bytes, found True",
    ),
    "vast": (
        _set("measured", "peak_by_phase", "forward", value=1 << 60),
        "expected a number of bytes",
    ),
    "sum": (_set("measured", "peak_allocated_bytes", value=7), "is 7, and the highest phase's"),
    "phase": (_set("measured", "peak_by_phase", value={"forward": 1}), "missing key 'backward'"),
    "device": (_set("device", "name", value="\x1b[31mT4"), "not a short name"),
    "version": (_set("versions", "torch", value="x" * 200), "not a short name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_measured_step_is_refused_by_its_line(
    name: str, sent: Path, tmp_path: Path, capsys
) -> None:
    change, said = WRONG[name]
    line = json.loads(sent.read_text().splitlines()[0])
    change(line)
    file = tmp_path / "sent.jsonl"
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(BenchError, match=said):
        load_steps(file)
    assert main(["published", "--received", str(file)]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no measured step"),
        ("[" * 100_000, "line 1: not JSON"),
        ("not json", "line 1: not JSON"),
        ('{"kind": NaN}', "it holds NaN, which is not JSON"),
        ("[]", "expected a table"),
        ("\n" * 6000, "more than 5000 lines"),
        ("x" * (MOST_BYTES + 1), "larger than 4 MiB"),
    ],
    ids=["empty", "nested", "text", "nan", "list", "lines", "large"],
)
def test_a_file_of_something_else_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "sent.jsonl"
    file.write_text(text)
    with pytest.raises(BenchError, match=said):
        load_steps(file)


def test_there_must_be_something_to_keep(tmp_path: Path, capsys) -> None:
    assert main(["memory", "opt-125m", "--record", str(tmp_path / "a")]) == 2
    assert main(["published", "--measure", "3"]) == 2
    assert main(["published", "--measure", "0", "--record", str(tmp_path / "a")]) == 2
    assert "takes a number from 1 to 49" in capsys.readouterr().err


def test_steps_are_appended_to_their_own_kind_of_file(sent: Path, tmp_path: Path, capsys) -> None:
    """One that was cut short is gone on with; somebody else's is left as it is."""
    line = json.loads(sent.read_text().splitlines()[0])
    file = tmp_path / "kept.jsonl"
    for step in (line, line):
        append_step(file, step)
    assert len(load_steps(file)) == 2
    file.write_text(file.read_text() + '{"kind": "measured-st')
    append_step(file, line)
    assert [json.loads(each) for each in file.read_text().splitlines()[::3]] == [line, line]
    theirs = tmp_path / "train.yaml"
    theirs.write_text("lora_r: 16\n")
    os.mkfifo(tmp_path / "pipe")
    for wrong in (theirs, tmp_path / "pipe", Path("/dev/full")):
        asked = ["memory", "opt-125m", "--target-modules", "q_proj", "--measure"]
        assert main([*asked, "--record", str(wrong)]) == 2
        assert str(wrong) in capsys.readouterr().err
    assert theirs.read_text() == "lora_r: 16\n"


def test_a_step_is_kept_whole_or_not_at_all(sent: Path, tmp_path: Path) -> None:
    """On a disk that is full: here a limit of this process on what a file may have."""
    line = json.loads(sent.read_text().splitlines()[0])
    file, new = tmp_path / "kept.jsonl", tmp_path / "new.jsonl"
    append_step(file, line)
    whole = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, limits[1]))
    try:
        with pytest.raises(BenchError, match="the step was not kept: File too large"):
            append_step(file, line)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(BenchError, match="the step was not kept"):
            append_step(new, line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == whole
    assert not new.exists()
    append_step(file, line)
    assert len(load_steps(file)) == 2


def test_what_cannot_be_read_is_said_in_words(tmp_path: Path, capsys) -> None:
    for file, reason in (
        (tmp_path / "none", "no such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (Path("/dev/zero"), "cannot be read: it is not a regular file"),
    ):
        assert main(["published", "--received", str(file)]) == 2
        assert capsys.readouterr().err == f"bench: error: {file}: {reason}\n"


@pytest.mark.parametrize(
    "options", [["--plot", "a.svg"], ["--store"], ["--measure", "1", "--record", "b"]]
)
def test_received_steps_stand_alone(options: list[str], sent: Path, capsys) -> None:
    assert main(["published", "--received", str(sent), *options]) == 2
    assert "stands alone" in capsys.readouterr().err
    assert main(["published", "--record", "b"]) == 2


def test_what_a_gpu_is_asked_to_measure_exists() -> None:
    """Every scenario that `tox run -e gpu` names is one of its model's."""
    import argparse
    import configparser
    import shlex

    from bench.cli import memory

    tox = configparser.ConfigParser()
    tox.read(Path(__file__).resolve().parents[2] / "tox.ini")
    asked = [
        shlex.split(line.partition("bench memory ")[2])
        for line in tox["testenv:gpu"]["commands"].splitlines()
        if "bench memory " in line
    ]
    parser = argparse.ArgumentParser()
    memory.add_options(parser.add_argument)
    cases = {words[0]: len(memory.cases_of(parser.parse_args(words))[1]) for words in asked}
    assert cases == {"phi-3-medium": 18, "opt-350m": 3, "distilbert-base-uncased": 3}


def test_a_key_that_stands_twice_is_refused(sent: Path, tmp_path: Path) -> None:
    line = sent.read_text().splitlines()[0]
    twice = tmp_path / "twice.jsonl"
    twice.write_text(line.replace('"kind":', '"kind": "other", "kind":', 1) + "\n")
    with pytest.raises(BenchError, match="line 1: not JSON: the key 'kind' stands twice"):
        load_steps(twice)


def test_a_trainers_step_is_read_where_no_trainer_is(
    sent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is run, so nothing that runs it is needed."""
    line = json.loads(sent.read_text().splitlines()[0])
    line["case"]["step"]["loop"] = "sft"
    file = tmp_path / "sft.jsonl"
    file.write_text(json.dumps(line) + "\n")
    monkeypatch.setattr("bench.training.options.find_spec", lambda name: None)
    assert [step.case.step.loop for step in load_steps(file)] == ["sft"]
