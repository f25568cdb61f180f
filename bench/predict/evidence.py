"""What a prediction is worth: steps that others measured on a GPU, beside what is predicted.

The rows are `fixtures/measured/t4.csv`, each as the command line that says it; README.md beside it
has their source and their step. `predicted.json` keeps their predictions: from
both follows how far off a step may be, in a precision and a loop.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.files import FIXTURES, kept_rows, keyed, parse, parse_rows, read_json, read_rows
from bench.models.precision import precision
from bench.predict.gpus import PeakRange
from bench.training.options import KEEP_OUTPUT, PHASES, PLAIN
from bench.units import MIB

FILE = FIXTURES / "measured" / "t4.csv"
GPU_FILE = FIXTURES / "measured" / "gpu.csv"
KEPT_FILE = FIXTURES / "measured" / "predicted.json"
_ROW = keyed((
    "id", "model", "quant", "attention", "batch", "seq_len", "r", "allocated", "reserved",
    "after_load", "peak_forward", "peak_backward", "peak_optimizer", "trainable", "step_seconds",
    "torch", "transformers", "peft", "bitsandbytes", "config",
), str)  # fmt: skip
_STEP = (
    "--target-modules", "q_proj,k_proj,v_proj,o_proj", "--gpu", "t4", "--loop", "keep-output",
    "--no-loss-scaling", "--gradient-checkpointing",
)  # fmt: skip
Kept = Mapping[str, int]
KEPT = ("peak_allocated_bytes", "peak_reserved_bytes", "loaded_bytes", *PHASES)
"""What is kept of a prediction: its peaks, what is loaded, and each phase's peak."""


@dataclass(frozen=True)
class Measured:
    """One measured step: bytes by what was read, the model's config, and the step's options."""

    id: str
    model: str
    config: dict[str, Any]
    options: tuple[str, ...]
    quantized: bool
    attention: str
    batch_size: int
    seq_len: int
    trainable_parameters: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    loaded_bytes: int
    peak_by_phase: dict[str, int]

    def bytes_of(self, name: str) -> int:
        """What was measured of the figure that is kept as `name`."""
        value: int = self.peak_by_phase[name] if name in PHASES else getattr(self, name)
        return value

    def error(self, name: str, kept: Mapping[str, Kept]) -> float:
        """Predicted / measured - 1, of the figure `name`."""
        return kept[self.id][name] / self.bytes_of(name) - 1

    def titled(self, *more: str) -> str:
        """The step in words, `more` behind its model."""
        model = self.model.rpartition("/")[2]
        return ", ".join((model, *more, self.attention, f"{self.batch_size} × {self.seq_len}"))


def load_measured(path: Path = FILE) -> list[Measured]:
    """Every row. Raises BenchError, naming file and line, for what is missing or wrong."""
    return parse_rows(path, _ROW, _measured)


def _measured(row: dict[str, str]) -> Measured:
    quantized = {"none": False, "nf4": True}[row["quant"]]
    precision = ("nf4", "--kbit", "--compute-dtype", "fp16") if quantized else ("fp16",)
    kernel = {"eager": "eager", "sdpa": "efficient"}[row["attention"]]
    options = (
        *_STEP, "--rank", row["r"], "--attention", kernel, "--batch-size", row["batch"],
        "--seq-len", row["seq_len"], "--precision", *precision,
    )  # fmt: skip

    def size(name: str) -> int:
        return round(float(row[name]) * MIB)

    return Measured(
        id=row["id"],
        model=row["model"],
        config=json.loads(row["config"]),
        options=options,
        quantized=quantized,
        attention=kernel,
        batch_size=int(row["batch"]),
        seq_len=int(row["seq_len"]),
        trainable_parameters=int(row["trainable"]),
        peak_allocated_bytes=size("allocated"),
        peak_reserved_bytes=size("reserved"),
        loaded_bytes=size("after_load"),
        peak_by_phase={phase: size(f"peak_{phase}") for phase in PHASES},
    )


def load_kept(path: Path = KEPT_FILE) -> dict[str, Kept]:
    """The kept predictions, by the row's id. Raises BenchError for what is missing or wrong."""
    rows = parse(read_json(path), keyed(("versions", "rows"), dict[str, Any]), str(path))["rows"]
    return {name: parse(row, keyed(KEPT, int), f"{path}: {name}") for name, row in rows.items()}


def write_kept(kept: Mapping[str, Kept], versions: Mapping[str, str], path: Path) -> None:
    """Keep these predictions, a row a line."""
    path.write_text(kept_rows(versions, kept), encoding="utf-8")


@dataclass(frozen=True)
class Agreement:
    """Relative errors, predicted / measured - 1, over some rows: the mean of their sizes, and the
    largest, with its sign."""

    rows: int
    mean: float
    worst: float


def agreement(name: str, rows: Iterable[Measured], kept: Mapping[str, Kept]) -> Agreement:
    """How `name`, one of `KEPT`, agrees over these rows."""
    return agreement_of(row.error(name, kept) for row in rows)


def agreement_of(errors: Iterable[float]) -> Agreement:
    """How such errors agree; at least one is needed."""
    each = list(errors)
    return Agreement(len(each), fmean(map(abs, each)), max(each, key=abs))


@dataclass(frozen=True)
class _Seen:
    """A measured step: measured / predicted peak reserved, and what it measured."""

    ratio: float
    step: str

    @property
    def deviation(self) -> float:
        return abs(self.ratio - 1)


def _kind(precision_name: str) -> str:
    """What rows of this precision say something of: every 4-bit format allocates alike."""
    kind = precision(precision_name)
    return "4-bit" if kind.quantized and kind.bits == 4 else precision_name


@cache
def _seen() -> dict[str, dict[str, list[_Seen]]]:
    """By loop and kind of precision: others' on a T4, which hold the model's output, and this
    project's own step on an H200."""
    found: dict[str, dict[str, list[_Seen]]] = {KEEP_OUTPUT: {}, PLAIN: {}}
    kept, name = load_kept(), "peak_reserved_bytes"
    for row in load_measured():
        if row.id in kept:
            seen = _Seen(row.bytes_of(name) / kept[row.id][name], row.titled())
            found[KEEP_OUTPUT].setdefault("4-bit" if row.quantized else "fp16", []).append(seen)
    for each in read_rows(GPU_FILE):
        if each["figure"] == "peak reserved":
            ratio = int(each["measured_bytes"]) / int(each["predicted_bytes"])
            rows = found[PLAIN].setdefault(_kind(each["precision"]), [])
            rows.append(_Seen(ratio, each["case"]))
    return found


def interval(precision_name: str, loop: str, gpus: int = 1) -> PeakRange:
    """What the measured rows support for this precision and loop, and which row widens it most.
    Every row is of one GPU.

    Where rows are of the same kind, their range; to the project's own step those of others count
    too, whose loader leaves more behind. Elsewhere the largest deviation of any row, to both sides:
    for int8 too, whose rows have random weights, and trained ones have outlier columns.
    """
    seen, kind = _seen(), _kind(precision_name)
    own = seen.get(loop, {}).get(kind, []) if gpus == 1 else []
    random = kind == "int8" and bool(own)
    rows, where = ([] if random else own), "a T4"
    if rows and loop == PLAIN:
        others = seen[KEEP_OUTPUT].get(kind, [])
        rows = [*rows, *others]
        where = "an H200" + (f" and, in the {KEEP_OUTPUT} loop, on a T4" if others else "")
    if rows:
        low, high = (f(1.0, *(row.ratio for row in rows)) for f in (min, max))
        farthest = max(rows, key=lambda row: row.deviation)
        why = f"the {kind} steps measured on {where}, of which {farthest.step} lies farthest off"
        return PeakRange(low, high, why)
    every = [row for kinds in seen.values() for each in kinds.values() for row in each]
    widest = max(every, key=lambda row: row.deviation)
    if random:
        said = "int8 steps were measured with random weights, which have no outlier columns"
    else:
        kind = f"in {precision_name} and the {loop} loop" if gpus == 1 else "over several GPUs"
        said = f"no step {kind} was measured"
    why = f"{said}; the largest deviation, of {widest.step}"
    return PeakRange(1 - widest.deviation, 1 + widest.deviation, why)
