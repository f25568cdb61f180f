"""`bench memory`: predicted steps as text, tables and JSON; solved for, or stored, if asked."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.baselines.predicted import store
from bench.errors import BenchError, UnknownName
from bench.predict.gpus import Gpu, find_gpu, gpu_with_memory
from bench.predict.largest import SEQ_LEN, SOLVABLE, Solution, check_has_length, solve
from bench.predict.result import Prediction, predict
from bench.reports.commands import write_report
from bench.reports.predicted import notes, prediction_report, prediction_rows, prediction_text

if TYPE_CHECKING:
    from bench.scenarios.subjects import Subject
    from bench.training.cases import Case, StepOptions


DEFAULT_SEQ_LEN = 512
"""Tokens where no length is asked for."""


@dataclass(frozen=True)
class Asked:
    """How to predict, and what to do with it: `bench memory`'s options of the same names."""

    precisions: Sequence[str] = ("bf16",)
    attention: str | None = None
    gpu: str | None = None
    gpu_memory: str | None = None
    solve: str | None = None
    seq_len: int | None = None
    store: bool = False
    format: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.gpu and self.gpu_memory:
            raise BenchError("give --gpu or --gpu-memory, not both")
        if self.solve is not None and self.solve not in SOLVABLE:
            raise UnknownName("value to solve for:", self.solve, SOLVABLE)
        if self.solve and not (self.gpu or self.gpu_memory):
            raise BenchError("--solve needs --gpu or --gpu-memory: there is nothing to fit")
        if self.json and self.format:
            raise BenchError("give --json or --format, not both")
        if self.store and (self.attention or self.gpu or self.gpu_memory or self.solve):
            raise BenchError(
                "--store keeps what holds for every GPU: "
                "give it without --attention, --gpu, --gpu-memory and --solve"
            )

    def card(self) -> Gpu | None:
        """The GPU to hold predictions against, if one was named."""
        if self.gpu:
            return find_gpu(self.gpu)
        return gpu_with_memory(self.gpu_memory) if self.gpu_memory else None


def memory_command(subjects: Sequence[Subject], step: StepOptions, asked: Asked) -> int:
    """Predict every subject in every precision and print it; 1 if a GPU was asked for and a step
    does not fit it, else 0. Raises BenchError on wrong input."""
    card = asked.card()
    cases = [replace(s, precision=p).case(step) for s in subjects for p in asked.precisions]
    if not cases:
        raise BenchError("no scenario applies to this model: give --target-modules or --adapter")
    if asked.store and any(subject.scenario is None for subject in subjects):
        raise BenchError("--store keeps predictions of registered scenarios: give --scenario")
    if asked.seq_len is not None or asked.solve == SEQ_LEN:
        for case in cases:
            check_has_length(case)
    progress = _Progress(len(cases))
    one_by_one = asked.json or asked.solve or (len(cases) == 1 and not asked.format)
    found = []
    for case in cases:
        progress.begin(case.id)
        done: Prediction | Solution
        if asked.solve:
            done = _solved(case, asked, card, progress)
        else:
            done = predict(case, gpu=card, attention=asked.attention, progress=progress.phase)
        progress.clear()
        if one_by_one:
            text = json.dumps(_as_json(done)) if asked.json else prediction_text(done)
            print(text, flush=True)
        found.append(done.prediction if isinstance(done, Solution) else done)
    if not one_by_one:
        _table(found, card, asked.format or "markdown")
    if asked.store:
        print(f"stored {len(found)} in {store(found)}", file=sys.stderr)
    return int(any(p.fit is not None and not p.fit.fits for p in found))


def _table(found: Sequence[Prediction], card: Gpu | None, format: str) -> None:
    if format != "csv":
        write_report(prediction_report(found, card), format)
        return
    rows = prediction_rows(found, card)
    writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _solved(case: Case, asked: Asked, gpu: Gpu | None, progress: _Progress) -> Solution:
    assert asked.solve is not None
    limit = None
    if asked.solve == SEQ_LEN:
        from bench.training.limits import case_limit

        limit = case_limit(case)

    def attempt(trial: Case) -> Prediction:
        progress.begin(trial.id)
        return predict(trial, gpu=gpu, attention=asked.attention, progress=progress.phase)

    return solve(case, asked.solve, attempt, limit)


def _as_json(done: Prediction | Solution) -> dict[str, Any]:
    if isinstance(done, Prediction):
        return {**done.to_dict(), "notes": notes(done)}
    solved = {"what": done.what, "value": done.value, "bounded": done.bounded}
    return {**_as_json(done.prediction), "solved": solved}


class _Progress:
    """One line on a terminal's standard error; silent elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0
        self._case = ""
        self._shown = sys.stderr.isatty()

    def begin(self, case: str) -> None:
        self._number += 1
        self._case = case

    def phase(self, name: str) -> None:
        if self._shown:
            of = f"/{self._total}" if self._number <= self._total else ""
            print(f"\r\x1b[K[{self._number}{of}] {self._case}: {name}", end="", file=sys.stderr)
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
