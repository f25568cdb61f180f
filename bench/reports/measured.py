"""Steps that others measured on a GPU, each as the command line that says it.

The rows are `fixtures/measured/t4.csv`; README.md beside it has their source and their step.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError, check_keys
from bench.files import FIXTURES

FILE = FIXTURES / "measured" / "t4.csv"
PHASES = ("forward", "backward", "optimizer")
_KEYS = (
    "id", "model", "quant", "attention", "batch", "seq_len", "r", "allocated", "reserved",
    "after_load", "peak_forward", "peak_backward", "peak_optimizer", "trainable", "step_seconds",
    "torch", "transformers", "peft", "bitsandbytes", "config",
)  # fmt: skip
_STEP = (
    "--target-modules", "q_proj,k_proj,v_proj,o_proj", "--gpu", "t4", "--loop", "keep-output",
    "--no-loss-scaling", "--gradient-checkpointing",
)  # fmt: skip
_MIB = 1 << 20


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


def load_measured(path: Path = FILE) -> list[Measured]:
    """Every row. Raises BenchError, naming file and line, for what is missing or wrong."""
    found = []
    with path.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            where = f"{path}: line {number}"
            check_keys(row, where, _KEYS, _KEYS)
            try:
                found.append(_measured(row))
            except (ValueError, KeyError) as error:
                raise BenchError(f"{where}: {error}") from None
    return found


def _measured(row: dict[str, str]) -> Measured:
    quantized = {"none": False, "nf4": True}[row["quant"]]
    precision = ("nf4", "--kbit", "--compute-dtype", "fp16") if quantized else ("fp16",)
    kernel = {"eager": "eager", "sdpa": "efficient"}[row["attention"]]
    options = (
        *_STEP, "--rank", row["r"], "--attention", kernel, "--batch-size", row["batch"],
        "--seq-len", row["seq_len"], "--precision", *precision,
    )  # fmt: skip

    def size(name: str) -> int:
        return round(float(row[name]) * _MIB)

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
