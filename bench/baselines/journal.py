"""The finished cases of a run that goes on, each on disk as it ends: a killed run costs one case.

    results/MACHINE/.unfinished-NAME.jsonl    the run without its cases, then a case a line

The file is there as long as the run is, and its lock as long as the process. One that was left
behind becomes a stored run, interrupted, of that name: nothing of it is lost, and `--resume` goes
on from there as it does after Ctrl-C.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from bench.baselines.runs import KEY, load_run
from bench.baselines.storage import stored_files, write_run
from bench.errors import BenchError
from bench.files import finite


class Lines:
    """A file that grows by whole lines, each sealed and on the disk itself, and is this process's
    alone: `found` is what it held. `trouble` says why one could not be kept, if any.

    Raises BenchError where it cannot be written to (`refused`, and why), where another process has
    it (`taken`), and where a line was edited.
    """

    def __init__(self, path: Path, refused: str, taken: str) -> None:
        self.path = path
        self.trouble = ""
        self._digest = ""
        self._kept = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk refused is not tried again when the file is closed.
            self._file: IO[bytes] = path.open("ab+", buffering=0)
        except OSError as error:
            raise BenchError(f"{refused}: {error.strerror}") from None
        if not _lock(self._file):
            self._file.close()
            raise BenchError(taken)
        try:
            self.found = self._read()
        except BenchError:
            self._file.close()
            raise

    def start(self, head: Any) -> None:
        """Write what the lines are of, in the place of what was found."""
        self._file.truncate(0)
        self._digest = ""
        self._write(head)

    def go_on(self) -> None:
        """Write behind what was found, of which nothing is written anew: whoever kills the process
        meanwhile would take it along."""
        self._file.truncate(self._whole)
        self._kept = True

    def keep(self, value: Any) -> None:
        """Write a line. Where it cannot be, `trouble` says why, and the work goes on: it is stored
        whole at its end."""
        try:
            self._write(value)
            self._kept = True
        except BenchError as error:
            self.trouble = str(error)

    @property
    def so_far(self) -> str:
        """What somebody is told who ends the work now: that it can go on, if anything is kept."""
        if self._kept or self.found:
            return f"what is finished is kept in {self.path}: go on with --resume"
        return "no case was finished: nothing is kept"

    def close(self, *, done: bool) -> None:
        """Let the file go, and remove it if all is stored, or nothing is kept in it."""
        if not self._file.closed:
            if done or not (self._kept or self.found):
                self.path.unlink(missing_ok=True)
            self._file.close()

    def _write(self, value: Any) -> None:
        text, digest = _sealed(value, self._digest)
        line = text.encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)  # whole lines alone
            raise BenchError(f"{self.path}: not written: {error.strerror}") from error
        self._digest = digest

    def _read(self) -> list[Any]:
        """The values of the lines. The last may be torn, or have no end: the process was killed
        while it wrote it, and it is left out."""
        self._file.seek(0)
        text = self._file.read().decode(errors="replace")
        found: list[Any] = []
        self._whole = 0
        before, lines = "", text.splitlines()
        for number, line in enumerate(lines, 1):
            if number == len(lines) and not text.endswith("\n"):
                break
            try:
                value = json.loads(line)["line"]
                sealed, before = _sealed(value, before)
            except (ValueError, TypeError, KeyError, RecursionError):
                sealed = ""
            if sealed.rstrip("\n") != line:
                raise BenchError(
                    f"{self.path}: line {number} was edited, or is of another release: it does not "
                    "match its digest. Remove the file: the run is then begun anew"
                )
            found.append(value)
            self._digest, self._whole = before, self._whole + len(f"{line}\n".encode())
        return found


class RunJournal(Lines):
    """Cases as they finish. Raises BenchError where the folder cannot be written to, and where
    another run of this name goes on there."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(
            folder / f".unfinished-{name}.jsonl",
            f"{folder}: no run can be stored here",
            f"a run {name!r} goes on in {folder}: give this one another name",
        )
        try:
            self.left = self._salvage(name)
        except BenchError:
            self._file.close()
            raise
        """The interrupted run that a killed one has become, if there was one."""

    def begin(self, document: Mapping[str, Any]) -> None:
        """Write what the run is, without its cases."""
        self.start({**document, KEY: {**document[KEY], "records": {}}})

    def add(
        self, key: str, record: Mapping[str, Any], benchmarks: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Keep a finished case, with what pytest-benchmark has of it."""
        self.keep({"key": key, "record": record, "benchmarks": benchmarks})

    def _salvage(self, name: str) -> Path | None:
        stored = None
        if len(self.found) > 1:
            document, *cases = self.found
            body = document[KEY]
            body["records"] = {case["key"]: case["record"] for case in cases}
            document["benchmarks"] = [each for case in cases for each in case.get("benchmarks", ())]
            body["detail"] = {**body.get("detail", {}), "interrupted": True}
            stored = write_run(self.path.parent, name, document)
        self._file.truncate(0)
        self.found = []
        return stored


def _sealed(value: Any, before: str) -> tuple[str, str]:
    """(a line that holds `value`, its digest): over it and the line before, whose digest is
    `before`, so that no line is changed, left out or moved unseen."""
    text = json.dumps(finite(value), allow_nan=False)
    digest = hashlib.sha256(f"{before}{text}".encode()).hexdigest()
    return json.dumps({"digest": digest}).removesuffix("}") + f', "line": {text}}}\n', digest


def unfinished(folder: Path, name: str) -> dict[str, Any]:
    """The document of the newest run `name` in `folder`, which was interrupted. BenchError if there
    is none, or if that one came to its end."""
    runs = [path for path in stored_files(folder) if path.stem.partition("_")[2] == name]
    if not runs:
        raise BenchError(f"--resume: there is no run {name!r} in {folder}")
    if not load_run(runs[-1]).interrupted:
        raise BenchError(
            f"--resume: {runs[-1].stem} came to its end: there is nothing to go on with"
        )
    document: dict[str, Any] = json.loads(runs[-1].read_text(encoding="utf-8"))
    document["path"] = str(runs[-1])
    return document


def _lock(file: IO[bytes]) -> bool:
    """Whether the file is this process's alone; where there are no locks, it is taken to be."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
