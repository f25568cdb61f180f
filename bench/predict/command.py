"""`bench memory`: a predicted step for people (text, a table) and for programs (JSON)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, UnknownName
from bench.predict.gpus import GIB, Gpu, find_gpu, fit, gpu_with_memory
from bench.predict.result import LIMITS, Prediction, predict
from bench.predict.solve import SEQ_LEN, SOLVABLE, Solution, solve
from bench.units import (
    format_bytes,
    format_count,
    format_flops,
    format_percent,
    format_seconds,
)

if TYPE_CHECKING:
    from bench.cases import Case, StepOptions
    from bench.subjects import Subject

SIZES = (24, 48, 80)
"""GiB of the GPUs that a table of several cases has a column for."""
_LABELS = {
    "weights": "weights",
    "quantization_state": "quantization state",
    "adapters": "adapters and saved modules",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "activations": "activations",
    "logits_and_loss": "logits and loss",
    "kernel_workspace": "kernel workspace",
}


def memory_command(
    subjects: Sequence[Subject],
    step: StepOptions,
    *,
    precisions: Sequence[str] = ("bf16",),
    attention: str | None = None,
    gpu: str | None = None,
    gpu_memory: str | None = None,
    solve_for: str | None = None,
    as_json: bool = False,
) -> int:
    """Predict every subject in every precision and print it; 1 if a GPU was asked for and a step
    does not fit it, else 0. Raises BenchError on wrong input."""
    if gpu and gpu_memory:
        raise BenchError("give --gpu or --gpu-memory, not both")
    if solve_for is not None and solve_for not in SOLVABLE:
        raise UnknownName("value to solve for:", solve_for, SOLVABLE)
    if solve_for and not (gpu or gpu_memory):
        raise BenchError("--solve needs --gpu or --gpu-memory: there is nothing to fit")
    asked = find_gpu(gpu) if gpu else gpu_with_memory(gpu_memory) if gpu_memory else None
    cases = [replace(s, precision=p).case(step) for s in subjects for p in precisions]
    if not cases:
        raise BenchError("no scenario applies to this model: give --target-modules or --adapter")
    progress = _Progress(len(cases))
    found = []
    for case in cases:
        progress.begin(case.id)
        done: Prediction | Solution
        if solve_for:
            done = _solved(case, solve_for, asked, attention, progress)
        else:
            done = predict(case, gpu=asked, attention=attention, progress=progress.phase)
        progress.clear()
        if as_json:
            print(json.dumps(_as_json(done)), flush=True)
        elif len(cases) == 1 or solve_for:
            print(_text(done), flush=True)
        found.append(done.prediction if isinstance(done, Solution) else done)
    if len(cases) > 1 and not as_json and not solve_for:
        print(table(found, asked))
    return int(any(p.fit is not None and not p.fit.fits for p in found))


def table(predictions: Sequence[Prediction], gpu: Gpu | None = None) -> str:
    """A Markdown table of several predictions, with a column for each usual size of GPU."""
    from tabulate import tabulate

    gpus = [gpu] if gpu else [Gpu(f"{size} GB", size * GIB) for size in SIZES]
    header = ["case", "predicted peak allocated", "predicted peak reserved"]
    rows = []
    for p in predictions:
        peaks = p.peak_allocated_bytes, p.peak_reserved_bytes
        fits = ["yes" if fit(g, *peaks).fits else "no" for g in gpus]
        rows.append([p.case, *map(format_bytes, peaks), *fits])
    header += [f"fits {g.name}" for g in gpus]
    grid = tabulate(rows, header, tablefmt="pipe", disable_numparse=True)
    return f"{grid}\n\nPredicted, not measured: {'; '.join(LIMITS)}."


def _solved(
    case: Case, what: str, gpu: Gpu | None, attention: str | None, progress: _Progress
) -> Solution:
    limit = None
    if what == SEQ_LEN:
        from bench.predict.limits import case_limit

        limit = case_limit(case)

    def attempt(trial: Case) -> Prediction:
        progress.begin(trial.id)
        return predict(trial, gpu=gpu, attention=attention, progress=progress.phase)

    return solve(case, what, attempt, limit)


def _as_json(done: Prediction | Solution) -> dict[str, Any]:
    if isinstance(done, Prediction):
        return done.to_dict()
    return {
        **done.prediction.to_dict(),
        "solved": {"what": done.what, "value": done.value, "bounded": done.bounded},
    }


def _text(done: Prediction | Solution) -> str:
    lines = []
    if isinstance(done, Solution):
        why = (
            "the largest that was tried or that the model takes"
            if done.bounded
            else "one more does not"
        )
        lines.append(f"largest {done.what} that fits: {done.value} ({why})")
        p = done.prediction
    else:
        p = done
    lines += [
        f"{p.case}: predicted, not measured",
        f"  peak allocated  {format_bytes(p.peak_allocated_bytes)}",
        f"  peak reserved   {format_bytes(p.peak_reserved_bytes)}",
        f"  the peak lies in {p.peak_phase}, at {p.peak_operation}; it is made of",
    ]
    for name, size in sorted(p.breakdown.items(), key=lambda item: -item[1]):
        if size:
            share = format_percent(100 * size / p.peak_allocated_bytes)
            lines.append(f"    {_LABELS[name]:<27}{format_bytes(size):>10}  {share:>7}")
    lines += [
        f"  trainable parameters {format_count(p.trainable_parameters)}",
        f"  a step: {format_flops(p.flops)}, {format_count(p.operations)} operations, "
        f"{format_bytes(p.bytes_moved)} moved, {format_count(p.tokens_per_step)} tokens",
    ]
    if p.modelled_step_seconds is not None and p.fit is not None:
        least = format_seconds(p.modelled_step_seconds)
        lines.append(
            f"  modelled step time on {p.fit.gpu}: at least {least} "
            "(roofline of published peak rates; real steps take longer)"
        )
    if p.fit is not None:
        lines.append(_fit_line(p))
    lines.append(f"  holds for: {'; '.join(LIMITS)}")
    return "\n".join(lines)


def _fit_line(p: Prediction) -> str:
    assert p.fit is not None
    margin = format_bytes(abs(p.fit.margin_bytes))
    context = format_bytes(p.fit.context_bytes)
    if p.fit.fits:
        return f"  fits {p.fit.gpu}: yes, {margin} to spare beside {context} for the context"
    close = "; what is allocated would fit without fragmentation" if p.fit.allocated_fits else ""
    return (
        f"  fits {p.fit.gpu}: no, {margin} too large beside {context} for the CUDA context{close}"
    )


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
