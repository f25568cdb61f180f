"""The commands that write pages, plots and histories, from a folder of stored runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_baselines import STEP, sample

from bench.baselines import KEY, write_run
from bench.cli import main

pytest.importorskip("matplotlib", reason="pip install 'lora-target-bench[report]'")
pytest.importorskip("jinja2", reason="pip install 'lora-target-bench[report]'")

PEAKS = (1000, 1000, 1500, 1500)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four stored runs of one machine; from the third on, a step takes half as much again."""
    for number, peak in enumerate(PEAKS):
        document = sample(f"run{number}")
        document[KEY]["records"][STEP]["metrics"]["peak_allocated_bytes"] = peak * 2**20
        write_run(tmp_path / "results" / "linux-x86_64-cpu", f"run{number}", document)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_latest_run_as_a_page(results: Path) -> None:
    assert main(["report", "--format", "html", "--output", "page.html", "--baseline", "0002"]) == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "FAILED" in page
    assert "1 regressed" in page
    assert page.startswith("<!doctype html>")


def test_every_plot_in_both_formats(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("plots").mkdir()
    assert main(["report", "0004", "--plots", "plots"]) == 0
    names = sorted(file.name for file in Path("plots").iterdir())
    assert names == ["cost-opt-350m.png", "cost-opt-350m.svg"]
    assert "cost-opt-350m" in capsys.readouterr().err


def test_history_tells_the_step(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["history", "peak_allocated_bytes", "--case", STEP]
    assert main([*arguments, "--plot", "history.svg"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 runs of linux-x86_64-cpu" in said
    assert "1 step in 1 case" in said
    assert "1,000 MiB" in said
    assert "+50.0 %" in said
    assert "0002_run1 and 0003_run2" in said
    assert b"<svg" in Path("history.svg").read_bytes()
    assert main([*arguments, "--json"]) == 0
    (series,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [point["value"] for point in series["points"]] == [peak * 2**20 for peak in PEAKS]
    assert [step["index"] for step in series["steps"]] == [2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["history", "peak"], "unknown metric 'peak'"),
        (["history", "step_seconds", "--case", "llama"], "none of 4 stored runs"),
        (["history", "step_seconds", "--machine", "cray"], "matches 'cray/*'"),
        (["history", "step_seconds", "--plot", "x.gif"], "x.gif: a plot is written as"),
        (["report", "--plots", "nowhere"], "--plots nowhere: no such folder"),
        (["report", "--format", "html", "--output", "no/page.html"], "there is no folder"),
        (["report", "0009", "--format", "html"], "0009"),
    ],
)
def test_wrong_input_is_one_line(
    results: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(results.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert sorted(results.rglob("*")) == before


def test_a_run_of_another_schema_is_refused(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next(results.rglob("0004*.json"))
    document = json.loads(file.read_text())
    document[KEY]["schema"] = 99
    file.write_text(json.dumps(document))
    assert main(["report", str(file), "--format", "html", "--output", "page.html"]) == 2
    assert "newer version" in capsys.readouterr().err
    assert not Path("page.html").exists()


@pytest.mark.parametrize("command", ["targets", "memory"])
def test_one_model_drawn(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plot.svg"
    asked = ["opt-125m", "--target-modules", "q_proj,gate_proj", "--plot", str(file)]
    assert main([command, *asked, *(["--seq-len", "32"] if command == "memory" else [])]) == 0
    drawn = file.read_text()
    assert "opt-125m" in drawn
    assert ("gate_proj" in drawn) == (command == "targets")


def test_coverage_of_the_atlas_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plot.svg"
    assert main(["atlas", "--plot", str(file), "--types", "llama,phi3"]) == 0
    assert "phi3" in file.read_text()
    assert main(["atlas", "--plot", str(file), "--types", "lama"]) == 2
