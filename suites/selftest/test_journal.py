"""The journal of a run: what is in it when the run is killed, and whose it is."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import pytest
from test_baselines import QUERY, STEP, sample

from bench.baselines import KEY, find_runs, load_run
from bench.baselines.accepted import accept, load_baseline, no_baseline
from bench.baselines.journal import RunJournal
from bench.baselines.storage import write_run
from bench.cli import main
from bench.errors import BenchError


def _killed(folder: Path, *cases: str) -> None:
    """A run that wrote these cases, and the beginning of another one."""
    document = sample()
    records = document[KEY]["records"]
    process = os.fork()
    if process == 0:
        journal = RunJournal(folder, "long")
        journal.begin(document)
        for key in cases:
            journal.add(key, records[key])
        with journal.path.open("ab") as file:
            file.write(b'{"key": "half of')
        os._exit(0)  # no handler runs, as when it is killed
    os.waitpid(process, 0)


def test_what_a_killed_run_had_finished_is_a_stored_run(tmp_path: Path) -> None:
    _killed(tmp_path, QUERY, STEP)
    journal = RunJournal(tmp_path, "long")
    assert journal.left == tmp_path / "0001_long.json"
    run = load_run(journal.left)
    assert run.interrupted
    assert set(run.records) == {QUERY, STEP}
    assert no_baseline(run) == "it was interrupted"
    journal.close(done=False)
    assert not list(tmp_path.glob(".unfinished*"))  # it has not begun


def test_a_full_disk_leaves_whole_lines_and_lets_the_run_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    document = sample()
    records = document[KEY]["records"]
    journal = RunJournal(tmp_path, "full")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(BenchError, match="No space left"):
            journal.begin(document)
    journal.close(done=False)
    assert not journal.path.exists()
    journal = RunJournal(tmp_path, "full")
    journal.begin(document)
    journal.add(QUERY, records[QUERY])
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        journal.add(STEP, records[STEP])
    assert "not written: No space left" in journal.trouble
    journal.close(done=False)
    left = RunJournal(tmp_path, "full").left
    assert left is not None
    assert load_run(left).records.keys() == {QUERY}


def test_a_run_that_was_killed_before_its_first_case_leaves_nothing(tmp_path: Path) -> None:
    _killed(tmp_path)
    assert RunJournal(tmp_path, "long").left is None
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    "edit", [lambda lines: [lines[0], lines[1].replace(b'"ok"', b'"oom"'), lines[2]],
             lambda lines: [lines[0], lines[2]],
             lambda lines: [lines[0], lines[2], lines[1]]],
)  # fmt: skip
def test_a_line_that_was_edited_left_out_or_moved_is_no_case(tmp_path: Path, edit) -> None:
    """Else a wrong figure would become a stored run with a digest of its own."""
    _killed(tmp_path, QUERY, STEP)
    (left,) = tmp_path.glob(".unfinished-*")
    *lines, _ = left.read_bytes().splitlines(keepends=True)
    assert edit(lines) != lines
    left.write_bytes(b"".join(edit(lines)))
    for _ in range(2):
        with pytest.raises(BenchError, match=r"line 2 was edited, .* Remove the file"):
            RunJournal(tmp_path, "long")
    left.unlink()
    assert RunJournal(tmp_path, "long").left is None


def test_two_runs_of_one_name_do_not_share_a_journal(tmp_path: Path) -> None:
    first = RunJournal(tmp_path, "long")
    with pytest.raises(BenchError, match=r"a run 'long' goes on in .*another name"):
        RunJournal(tmp_path, "long")
    other = RunJournal(tmp_path, "other")
    for journal in (first, other):
        journal.close(done=True)


def test_who_accepted_a_run_and_that_it_is_that_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path, "first", sample())
    with pytest.raises(BenchError, match=r"may be a baseline: 0001_first \(no gate has judged it"):
        load_baseline(tmp_path)
    assert load_baseline(tmp_path, "0001").name == load_run(path).name  # named, and no other
    file, before = accept(path, "as  it\nshould be")
    assert before is None
    entry = json.loads(file.read_text())["0001_first"]
    assert entry["reason"] == "as it should be"
    assert load_baseline(tmp_path).path == path
    assert main(["accept", str(path), "--reason", "looked at again"]) == 0
    said = capsys.readouterr().out
    assert f"in the place of what {entry['by']} recorded on {entry['when']}: as it should" in said
    other = sample()
    other[KEY]["records"][STEP]["metrics"]["loaded_bytes"] = 5
    path.unlink()
    assert write_run(tmp_path, "first", other) == path  # another run under the accepted name
    with pytest.raises(BenchError, match=r"no run in .* may be a baseline"):
        load_baseline(tmp_path)
    assert find_runs(tmp_path) == [path]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ("crashed", "crashed", "broken"),
        ("failed", "failed", "broken"),
        (None, "diverged", "broken"),
        ("oom", "oom", ""),
        (None, "oom", "new"),
    ],
)
def test_what_failed_and_fails_still_is_not_passed(
    before: str | None,
    after: str,
    verdict: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing got worse, and nothing is green: `bench compare` says which case, and ends with 1;
    `bench accept` says it beforehand. To run out of memory is a figure."""
    paths = []
    for name, outcome in (("a", before), ("b", after)):
        document = sample(name)
        if outcome is None:
            del document[KEY]["records"][STEP]
        else:
            document[KEY]["records"][STEP] |= {"outcome": outcome, "metrics": {}}
        paths.append(str(write_run(tmp_path, name, document)))
    assert main(["accept", paths[1], "--reason", "known"]) == 0
    told = f"1 case in it failed, and a gate fails on what ends so again (broken): {STEP} ({after})"
    assert (told in capsys.readouterr().out) == (verdict == "broken")
    assert main(["compare", *paths, "--format", "csv"]) == (verdict == "broken")
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert "".join(r["verdict"] for r in rows if r["verdict"] != "unchanged") == verdict
    assert main(["compare", *paths, "--allow", "broken"]) == 0


@pytest.mark.parametrize("there", [True, False])
def test_what_was_accepted_is_recorded_where_a_link_points(there: bool, tmp_path: Path) -> None:
    """`accepted.json` may lie elsewhere: the link stays one, and so does what it held."""
    elsewhere = tmp_path / "elsewhere.json"
    first, second = (write_run(tmp_path / "runs", name, sample()) for name in ("a", "b"))
    if there:
        accept(first, "as it should be")[0].rename(elsewhere)
    link = tmp_path / "runs" / "accepted.json"
    link.symlink_to(elsewhere)
    accept(second, "as it should be")
    assert link.is_symlink()
    assert sorted(json.loads(elsewhere.read_text())) == ["0001_a", "0002_b"][not there :]
