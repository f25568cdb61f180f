"""Saving under bad luck: two at once, a full disk, a kill. Finding what was saved."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_baselines import sample

from bench.baselines import find_runs, load_run, load_stored, storage, write_run
from bench.errors import BenchError
from bench.files import write_atomically

HERE = Path(__file__).parent
SAVING = """
import os, resource, signal, sys
sys.path[:0] = [{root!r}, {here!r}]
from test_baselines import sample
from bench.baselines import storage
from bench.errors import BenchError
from bench.files import write_atomically
{prelude}
try:
    storage.write_run({folder!r}, "second", sample("second"))
except BenchError as error:
    sys.exit(f"refused: {{error}}")
"""


def save_elsewhere(folder: Path, prelude: str) -> subprocess.CompletedProcess[str]:
    """Save a run in another process, after `prelude` has prepared its misfortune."""
    root, here = str(HERE.parents[1]), str(HERE)
    code = SAVING.format(root=root, here=here, prelude=prelude, folder=str(folder))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.json"))


def test_runs_are_numbered_and_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "linux-x86_64-cpu"
    first = write_run(folder, "first", sample("first"))
    second = write_run(folder, "second", sample("second"))
    assert [first.name, second.name] == ["0001_first.json", "0002_second.json"]
    assert load_run(first).name == "first"
    assert load_run(second).label == "0002_second"
    assert sorted(os.listdir(folder)) == ["0001_first.json", "0002_second.json"]
    assert first.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_numbers_go_on_after_the_highest(tmp_path: Path) -> None:
    (tmp_path / "9999_old.json").write_text("{}")
    assert write_run(tmp_path, "next", sample()).name == "10000_next.json"
    assert write_run(tmp_path, "next", sample()).name == "10001_next.json"


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "a\n", "x" * 101])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchError, match="cannot name a run"):
        write_run(tmp_path / "results", name, sample())
    assert not (tmp_path / "results").exists()


def test_a_taken_number_is_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as blind:
        blind.setattr(Path, "glob", lambda *_: ())  # sees none, and always begins at 0001
        for seed in range(3):
            write_run(tmp_path, "same", sample(seed=seed))
    assert stored(tmp_path) == ["0001_same.json", "0002_same.json", "0003_same.json"]
    assert [load_run(tmp_path / name).seed for name in stored(tmp_path)] == [0, 1, 2]


def test_a_folder_without_hard_links_still_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as blind:
        blind.setattr(Path, "glob", lambda *_: ())
        for seed in range(2):
            write_run(tmp_path, "same", sample(seed=seed))
    assert [load_run(tmp_path / name).seed for name in stored(tmp_path)] == [0, 1]
    assert len(os.listdir(tmp_path)) == 2


def save_many(folder: Path, process: int, count: int, locked: bool, begin: object) -> None:
    if not locked:
        storage.alone = lambda folder: contextlib.nullcontext()  # type: ignore[assignment]
    begin.wait()  # type: ignore[attr-defined]
    for number in range(count):
        name = f"p{process}" if locked else "same"
        write_run(folder, name, sample(seed=process * count + number))


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize("locked", [True, False])
def test_savers_at_once_lose_nothing(tmp_path: Path, locked: bool) -> None:
    """Without the lock (a file system that has none) numbers may repeat, runs not vanish."""
    processes, count = 4, 8
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(processes)
    workers = [
        context.Process(target=save_many, args=(tmp_path, i, count, locked, begin))
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * processes
    seeds = sorted(load_run(tmp_path / name).seed for name in stored(tmp_path))
    assert seeds == list(range(processes * count))
    assert sorted(int(name[:4]) for name in stored(tmp_path)) == list(
        range(1, processes * count + 1)
    )
    assert len(os.listdir(tmp_path)) == processes * count


@pytest.mark.parametrize("call", ["fsync", "link", "open"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_run(tmp_path, "first", sample())
    before = (tmp_path / "0001_first.json").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(BenchError, match="No space left"):
        write_run(tmp_path, "second", sample())
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["0001_first.json"]
    assert (tmp_path / "0001_first.json").read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
def test_a_file_that_may_not_grow_leaves_nothing(tmp_path: Path) -> None:
    done = save_elsewhere(tmp_path, "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))")
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert "nothing was written" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("moment", ["fsync", "link"])
def test_a_kill_during_save_loses_no_run(tmp_path: Path, moment: str) -> None:
    write_run(tmp_path, "first", sample())
    done = save_elsewhere(
        tmp_path, f"os.{moment} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert stored(tmp_path) == ["0001_first.json"]
    assert load_run(find_runs(tmp_path)[0]).name == "first"
    assert write_run(tmp_path, "third", sample("third")).name == "0002_third.json"


def test_replacing_a_file_keeps_the_old_one_if_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new folder" / "table.md"
    write_atomically(path, "old ×\n")
    write_atomically(path, "new ×\n")
    assert path.read_bytes() == "new ×\n".encode()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchError, match=r"table\.md: not saved: No space left"):
        write_atomically(path, "newest\n")
    assert path.read_bytes() == "new ×\n".encode()
    assert os.listdir(path.parent) == ["table.md"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name in ("cpu/0001_first", "cpu/0002_second", "gpu/0001_first", "gpu/0010_last", "0003_x"):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({}))
    (tmp_path / "cpu" / "notes.json").write_text("{}")
    (tmp_path / "cpu" / ".saving-1.tmp").write_text("{")
    return tmp_path


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (None, ["gpu/0010_last"]),
        ("0001", ["cpu/0001_first", "gpu/0001_first"]),
        ("0001_first", ["cpu/0001_first", "gpu/0001_first"]),
        ("0001_first.json", ["cpu/0001_first", "gpu/0001_first"]),
        ("first", ["cpu/0001_first", "gpu/0001_first"]),
        ("gpu/first", ["gpu/0001_first"]),
        ("cpu/", ["cpu/0001_first", "cpu/0002_second"]),
        ("*second", ["cpu/0002_second"]),
        ("0003", ["0003_x"]),
        ("3", ["0003_x"]),
        ("1", ["cpu/0001_first", "gpu/0001_first"]),
        ("gpu/10", ["gpu/0010_last"]),
        ("cpu/2_second", ["cpu/0002_second"]),
    ],
)
def test_finding(results: Path, selector: str | None, expected: list[str]) -> None:
    found = [
        str(path.relative_to(results).with_suffix("")) for path in find_runs(results, selector)
    ]
    assert found == expected


def test_a_number_is_a_run_before_it_is_a_name(results: Path) -> None:
    (results / "0011_3.json").write_text("{}")
    (results / "0012_77.json").write_text("{}")
    assert [path.stem for path in find_runs(results, "3")] == ["0003_x"]
    assert [path.stem for path in find_runs(results, "77")] == ["0012_77"]


def test_finding_by_path(results: Path) -> None:
    path = results / "cpu" / "notes.json"
    assert find_runs(results / "elsewhere", str(path)) == [path]


@pytest.mark.parametrize("selector", ["0004", "fir", "irst", "cpu/0010", "a/b/c"])
def test_not_found_lists_what_is_there(results: Path, selector: str) -> None:
    with pytest.raises(BenchError) as caught:
        find_runs(results, selector)
    assert selector in str(caught.value)
    assert "cpu/0001_first, gpu/0001_first, cpu/0002_second, 0003_x" in str(caught.value)


def test_nothing_stored_says_how_to_store(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BenchError, match="--benchmark-save=NAME"):
            find_runs(folder)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Runs numbered alike in two folders, the one of `gpu` later."""
    for folder, day in (("cpu", 1), ("gpu", 2)):
        document = sample(folder) | {"datetime": f"2026-01-0{day}T00:00:00"}
        write_run(tmp_path / folder, "first", document)
    return tmp_path


def test_one_run_is_never_picked_from_two_folders(folders: Path) -> None:
    with pytest.raises(BenchError, match="'0001' means several runs: cpu/0001_first, gpu/0001_fi"):
        load_stored(folders, "0001")
    assert load_stored(folders, "cpu/0001").name == "cpu"
    assert load_stored(folders).name == "gpu"
    write_run(folders / "cpu", "first", sample("newer") | {"datetime": "2026-01-03T00:00:00"})
    assert load_stored(folders, "cpu/first").name == "newer"
    assert load_stored(folders).name == "newer"
