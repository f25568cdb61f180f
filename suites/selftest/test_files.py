"""What a user names to write to: nothing else is replaced, made or overwritten."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_baselines import sample

from bench.baselines import write_run
from bench.cli import main
from bench.errors import BenchError
from bench.files import check_output, write_output


@pytest.fixture
def full_device(tmp_path: Path) -> Path:
    """A device of its own like /dev/full, so that a mistake harms no machine."""
    path = tmp_path / "full"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    except OSError:
        pytest.skip("no device can be made here")
    return path


def test_a_device_stays_a_device(full_device: Path) -> None:
    with pytest.raises(BenchError, match=r"full: (not written: No space left|.*ermission)"):
        write_output(full_device, "text")
    assert stat.S_ISCHR(full_device.stat().st_mode)
    write_output("/dev/null", "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    write_output(pipe, "a ×\n")
    reader.join(10)
    assert read == ["a ×\n"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_that_nobody_reads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays a pipe, and nothing waits for ever."""
    monkeypatch.setattr("bench.files.disk.PATIENCE_SECONDS", 0.0)
    pipe = tmp_path / "pipe.md"
    os.mkfifo(pipe)
    check_output(pipe, [".md"])
    with pytest.raises(BenchError, match="nobody has read this pipe within 0 s"):
        write_output(pipe, "text")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_standard_output_by_its_name_is_a_pipe_that_is_read() -> None:
    command = [sys.executable, "-m", "bench", "report", "--output", "/dev/stdout"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("#")


@pytest.mark.parametrize(
    ("way", "path"),
    [
        (">> {}", "/dev/stdout"),
        ("> {}", "/dev/stdout"),
        ("2>> {}", "/dev/stderr"),
        ("3>> {}", "/dev/fd/3"),
        (">> {}", "/proc/self/fd/1"),
    ],
)
def test_a_stream_that_is_open_keeps_what_it_holds(tmp_path: Path, way: str, path: str) -> None:
    """To open what it leads to once more would empty a log, or write over its next lines."""
    log = tmp_path / "run.log"
    log.write_text("earlier\n")
    program = (
        "import sys; from bench.files import write_output; stream = sys.stderr if 'err' in "
        f"{path!r} else sys.stdout; stream.write('before\\n'); write_output({path!r}, 'text\\n'); "
        "stream.write('after\\n')"
    )
    command = f'"{sys.executable}" -c "{program}" {way.format(log)}'
    subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)
    earlier = ["earlier"] if ">>" in way else []
    lines = ["before", "text", "after"] if "3>>" not in way else ["text"]
    assert log.read_text().splitlines() == [*earlier, *lines]


def test_a_link_is_followed(tmp_path: Path) -> None:
    there, link = tmp_path / "there" / "table.md", tmp_path / "link.md"
    there.parent.mkdir()
    link.symlink_to(there)
    for text in ("new\n", "newer\n"):  # first it points nowhere
        write_output(link, text)
        assert link.is_symlink()
        assert there.read_text() == text
    assert os.listdir(there.parent) == ["table.md"]


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_a_picture_takes_the_place_of_a_picture_alone(tmp_path: Path, ending: str) -> None:
    for name, said in (("notes.txt", "no file in"), ("notes", "no file in"), (f"old{ending}", "")):
        there, link = tmp_path / name, tmp_path / f"link-{name}{ending}"
        there.write_text("precious")
        link.symlink_to(there)
        if said:
            with pytest.raises(BenchError, match=f"{name} is there, and {said} {ending}"):
                check_output(link, [ending])
        else:
            check_output(link, [ending])


def test_what_a_file_allows_stays(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    path.write_text("old")
    path.chmod(0o640)
    write_output(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("locked.md", "locked.md: this file is read-only"),
        ("nowhere/table.md", "there is no folder .*nowhere to write it in"),
        ("folder", "this is a folder; name a file in it"),
        ("loop", "cannot be written: Too many levels of symbolic links"),
        ("file.md/table.md", "cannot be written: Not a directory"),
        ("/proc/table.md", "the folder /proc cannot be written to"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "locked.md").write_text("kept")
    (tmp_path / "locked.md").chmod(0o444)
    (tmp_path / "file.md").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for refused in (check_output, lambda path: write_output(path, "text")):
        with pytest.raises(BenchError, match=said):
            refused(tmp_path / name)
    assert (tmp_path / "locked.md").read_text() == (tmp_path / "file.md").read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()


def test_a_file_alone_in_a_folder_of_others_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a container mounts one file: it cannot be replaced."""
    path = tmp_path / "mounted.md"
    path.write_text("a longer old text")

    def busy(*_: object) -> None:
        raise OSError(16, os.strerror(16))

    monkeypatch.setattr(os, "replace", busy)
    write_output(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("command", ["report", "compare"])
def test_commands_refuse_it_before_they_read_a_run(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option = {"report": ["--output"], "compare": ["a", "b", "--verdict-file"]}[command]
    assert main([command, *option, str(tmp_path / "nowhere" / "x")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_somebody_elses_file_is_not_replaced(tmp_path: Path) -> None:
    """By its name's ending, where a link points; an empty or a new one may be written."""
    theirs, link = tmp_path / "train.yaml", tmp_path / "plot.svg"
    theirs.write_text("r: 8")
    link.symlink_to(theirs)
    for path in (theirs, link):
        with pytest.raises(BenchError, match=r"train.yaml is there, and no file in .svg"):
            check_output(path, [".svg"])
    for allowed, ending in (("old.SVG", ".svg"), ("notes.txt", ".md"), ("table", ".md")):
        (tmp_path / allowed).write_text("old")
        check_output(tmp_path / allowed, [ending])
    theirs.write_text("")
    check_output(theirs, [".svg"])
    check_output(tmp_path / "new.yaml", [".svg"])


@pytest.mark.parametrize(
    ("name", "format", "said"),
    [
        ("rep.html", "latex", "what is written is no .html, but .tex"),
        ("rep.csv", "json", "no .csv, but .json or .jsonl"),
        ("rep.svg", "markdown", "no .svg, but .md"),
        ("rep.md", "html", "no .md, but .html or .htm"),
    ],
)
def test_a_name_and_a_format_that_contradict(
    tmp_path: Path, name: str, format: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / name
    assert main(["report", "--output", str(output), "--format", format]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "begins"), [("a.html", "<!"), ("a.csv", "run,"), ("a.json", "{"), ("a.txt", "LoRA")]
)
def test_the_name_of_a_report_says_its_format(tmp_path: Path, name: str, begins: str) -> None:
    assert main(["report", "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_text().startswith(begins)


def test_verdicts_and_reports_replace_no_other_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the stored run that they are made from, nor anybody's config.json."""
    run, again = (write_run(tmp_path, name, sample()) for name in ("base", "again"))
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}')
    before = run.read_bytes()
    for file in (run, config):
        asked = ["compare", str(run), str(again), "--verdict-file", str(file)]
        assert main(asked) == 2
        assert "is there, and holds something else" in capsys.readouterr().err
        assert main(["report", str(run), "--format", "json", "--output", str(file)]) == 2
    assert run.read_bytes() == before
    verdicts = tmp_path / "verdicts.json"
    for _ in range(2):  # one's own may be replaced
        assert main(["compare", str(run), str(again), "--verdict-file", str(verdicts)]) == 0
    capsys.readouterr()
    assert main(["compare", str(run), str(again), "--verdict-file", "v.html"]) == 2
