"""The finished cases of a comparison that goes on, each on disk as it ends, for `--resume`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from bench.ab.environments import Environment
from bench.baselines.runs import finite
from bench.errors import BenchError

FILE = ".unfinished-ab.jsonl"


class PairJournal:
    """A line for what is compared, then one a case: its id and the record of either side.

    Raises BenchError where the folder cannot be written to, and where an unfinished comparison lies
    in it that `resume` does not ask for, or that was another one.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.path = folder / FILE
        self.found: dict[str, list[dict[str, Any] | None]] = {}
        self._head = ""
        self._file: IO[str] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            with self.path.open("a", encoding="utf-8"):
                pass  # it can be written to
            if not text:
                self.path.unlink()
        except OSError as error:
            raise BenchError(f"--save {folder}: cannot be written to: {error.strerror}") from None
        if text and not resume:
            raise BenchError(
                f"{self.path}: a comparison ended here before its last case: go on with it "
                "(--resume), or remove the file"
            )
        if resume and not text:
            raise BenchError(f"--resume: no unfinished comparison lies in {folder}")
        head, *lines = text.splitlines() or [""]
        self._head = head
        for line in lines:
            try:
                case = json.loads(line)
            except ValueError:
                break  # it was killed while it wrote this one
            self.found[case["key"]] = case["records"]

    def begin(self, plan: Sequence[object], sides: Sequence[Environment]) -> None:
        """Write what is compared; what was found has to be of the same."""
        head = json.dumps([repr(plan), *([s.label, s.versions, s.machine] for s in sides)])
        if self._head and self._head != head:
            raise BenchError(
                f"--resume: {self.path} is of another comparison: other cases, versions, options "
                "or another machine"
            )
        self._file = self.path.open("w", encoding="utf-8")
        self._write(head)
        for key, records in self.found.items():
            self.add(key, records)

    def add(self, key: str, records: Sequence[dict[str, Any] | None]) -> None:
        """Write a finished case, to the disk itself."""
        self._write(json.dumps(finite({"key": key, "records": records}), allow_nan=False))

    def remove(self) -> None:
        """Everything is stored."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
