"""Two runs of one number, as two merged branches leave them: which is the newest, and which of the
two a number means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_baselines import QUERY, sample

from bench.baselines import find_runs, load_stored, seal, storage
from bench.baselines.accepted import load_baseline
from bench.baselines.storage import stored_files
from bench.cli import main
from bench.errors import BenchError


def put(folder: Path, name: str, when: Any, layers: int = 24) -> Path:
    """A run whose gate passed, stored in a file of this name."""
    document = sample(name, detail={"gate": "passed"})
    document["datetime"] = when
    document["lora_bench"]["records"][QUERY]["metrics"]["adapted_layers"] = layers
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(seal(document)))
    return path


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a machine in which the first of two runs by name is the last by its time: 23:30
    in New York is the next day where times have no zone."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "machine"
    put(folder, "0001_base", "2026-01-01T00:00:00+00:00")
    put(folder, "0002_aa", "2026-01-02T23:30:00-05:00", layers=12)
    put(folder, "0002_zz", "2026-01-03T00:10:00")
    return folder


def test_the_one_stored_last_is_the_newest(merged: Path) -> None:
    results = merged.parent
    assert [path.stem for path in stored_files(results)] == ["0001_base", "0002_zz", "0002_aa"]
    assert [path.stem for path in find_runs(results)] == ["0002_aa"]
    assert load_stored(results).name == "0002_aa"
    assert load_stored(results, "machine/*").name == "0002_aa"
    assert load_baseline(results).name == "0002_aa"
    assert load_baseline(results, "*").name == "0002_aa"


def test_history_and_report_take_them_in_order(
    merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the names there would be two steps, there and back."""
    assert main(["history", "adapted_layers", "--format", "json"]) == 0
    (series,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [point["run"] for point in series["points"]] == ["0001_base", "0002_zz", "0002_aa"]
    assert [step["index"] for step in series["steps"]] == [2]
    assert main(["report", "--format", "markdown"]) == 0
    assert "Run 0002\\_aa: " in capsys.readouterr().out


@pytest.mark.parametrize("selector", ["0002", "2", "machine/0002", "0002_", "2_"])
def test_a_number_that_two_runs_have_is_refused(
    merged: Path, selector: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f"{selector!r} means several runs: machine/0002_zz, machine/0002_aa; name one"
    for load in (load_stored, load_baseline):
        with pytest.raises(BenchError, match=said):
            load(merged.parent, selector)
    for command in (
        ["compare", "0001", selector],
        ["compare", selector, "0001"],
        ["report", "0001", "--baseline", selector],
        ["accept", selector, "--reason", "why"],
    ):
        assert main(command) == 2
        assert said in capsys.readouterr().err
    for name in ("0002_aa", "2_aa", "aa", "machine/0002_aa.json", "0002_a*"):
        assert load_stored(merged.parent, name).name == "0002_aa"
        assert load_baseline(merged.parent, name).name == "0002_aa"


def test_one_of_them_is_meant_in_whatever_folder_it_is(merged: Path) -> None:
    put(merged.parent / "other", "0002_x", "2026-01-09T00:00:00")
    with pytest.raises(BenchError, match="machine/0002_zz, other/0002_x, machine/0002_aa; name"):
        load_baseline(merged.parent, "0002")
    assert load_baseline(merged.parent, "other/0002").name == "0002_x"


def test_a_whole_name_is_not_the_start_of_another(merged: Path) -> None:
    put(merged, "0002_aaa", "2026-01-08T00:00:00")
    assert load_stored(merged.parent, "0002_aa").name == "0002_aa"
    assert main(["accept", "0002_aa", "--reason", "why"]) == 0
    with pytest.raises(BenchError, match="'0002_a' means several runs"):
        load_stored(merged.parent, "0002_a")


def test_folders_do_not_count_together(merged: Path) -> None:
    """Alike numbers in two folders stay in their places: no time is compared."""
    other = merged.parent / "other"
    put(other, "0002_bb", "2020-01-01T00:00:00")
    put(other, "0003_last", "2019-01-01T00:00:00")
    found = [f"{path.parent.name}/{path.stem}" for path in stored_files(merged.parent)]
    assert found == [
        "machine/0001_base", "machine/0002_zz", "other/0002_bb", "machine/0002_aa",
        "other/0003_last",
    ]  # fmt: skip


def test_no_file_is_read_where_no_number_is_there_twice(
    merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(storage, "_stored_at", lambda path: read.append(path.stem))
    put(merged.parent / "other", "0001_base", "2020-01-01T00:00:00")
    stored_files(merged.parent)
    assert read == ["0002_aa", "0002_zz"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"datetime": 3}', '{"datetime": "soon"}', "\0"])
def test_where_a_time_cannot_be_read_the_names_decide(merged: Path, text: str) -> None:
    (merged / "0002_aa.json").write_text(text)
    assert [path.stem for path in stored_files(merged)] == ["0001_base", "0002_aa", "0002_zz"]
    assert load_stored(merged).name == "0002_zz"
