"""Predictions that are kept, one file for each set of library versions, to be compared exactly.

A prediction depends on nothing but the case and the libraries: a stored one holds on every
machine. `results/predicted/` has them, a case a line, so that a change is a readable diff.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from bench.errors import BenchError
from bench.files import OWN_RESULTS, RESULTS, kept_rows, keyed, parse, read_json, write_atomically
from bench.training.machine import versions
from bench.training.options import StepOptions
from bench.units import format_quantity

if TYPE_CHECKING:
    from bench.predict.result import Prediction
    from bench.training.cases import Case

FOLDER = RESULTS / "predicted"
OWN_FOLDER = OWN_RESULTS / "predicted"
FIGURES: Mapping[str, str] = {
    "peak_allocated_bytes": "bytes",
    "peak_reserved_bytes": "bytes",
    "flops": "flops",
    "operations": "operations",
    "trainable_parameters": "count",
}
"""What is kept of a prediction, and its unit."""
DECIDING = ("torch", "transformers", "peft", "bitsandbytes")
Figures = dict[str, int]
_FIGURES = keyed(FIGURES, Annotated[int, Meta(ge=0)])


@dataclass(frozen=True)
class _File:
    versions: dict[str, str]
    predictions: dict[str, Any]


def stored_file(folder: Path | None = None) -> Path:
    """Where the installed libraries' predictions are kept: one's own, else the project's. A build
    of torch (`+cpu`, `+cu128`) does not matter: what is predicted is CUDA in any case."""
    name = "_".join(f"{name}-{v}" for name, v in _libraries().items()) + ".json"
    own = (folder or OWN_FOLDER) / name
    return own if folder or own.exists() else FOLDER / name


def _libraries() -> dict[str, str]:
    installed = versions()
    return {n: installed[n].partition("+")[0] for n in DECIDING if n in installed}


def figures(prediction: Prediction) -> Figures:
    """What is kept of it."""
    return {name: getattr(prediction, name) for name in FIGURES}


def load_predictions(path: Path) -> dict[str, Figures]:
    """Figures by case id; empty where there is no such file. BenchError for one that is wrong."""
    if not path.exists():
        return {}
    kept = parse(read_json(path), _File, str(path)).predictions
    return {case: parse(kept[case], _FIGURES, f"{path}: {case}") for case in kept}


def check_store() -> None:
    """BenchError where `store` could not keep anything."""
    folder = OWN_FOLDER
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise BenchError(f"--store: {OWN_FOLDER} cannot be written to")


def store(predictions: Iterable[Prediction], folder: Path | None = None) -> Path:
    """Keep these predictions, in the place of older ones of the same cases; returns the file."""
    before = stored_file(folder)
    path = (folder or OWN_FOLDER) / before.name
    kept = load_predictions(before) | {p.case: figures(p) for p in predictions}
    write_atomically(path, kept_rows(_libraries(), dict(sorted(kept.items())), "predictions"))
    return path


def store_command(case: Case) -> str:
    """What to run to store this case's prediction. Raises nothing: the case ran already."""
    step = case.step
    sized = ["--batch-size", str(step.batch_size)]
    if case.task.has_length:
        sized += ["--seq-len", str(step.seq_len)]
    usual = StepOptions()
    rest = replace(step, batch_size=usual.batch_size, seq_len=usual.seq_len)
    words = ["bench", "memory", case.model, "--scenario", case.scenario]
    words += ["--rank", str(case.adapter.get("r", 8)), "--precision", case.precision]
    words += [*sized, *rest.words()]
    return shlex.join([*words, "--store"])


def difference(case: str, stored: Figures, obtained: Figures) -> str:
    """What differs, figure by figure; "" where nothing does."""
    lines = []
    for name, unit in FIGURES.items():
        before, now = stored[name], obtained[name]
        if before != now:
            more = now - before
            change = f" ({more / before:+.2%})" if before else ""
            lines.append(
                f"  {name}: obtained {now:,}, expected {before:,}: "
                f"{'+' if more > 0 else '-'}{format_quantity(abs(more), unit)}{change}"
            )
    return "\n".join([f"{case}: the prediction is not the stored one", *lines]) if lines else ""
