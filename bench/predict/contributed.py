"""Measured steps that people send: predicted beside measured, a line of JSON each.

`MemoryCallback` and `bench memory --measure --record FILE` write them; a file that was received is
read as data alone, and refused where anything in it is not what a measured step has.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from msgspec import Meta

from bench.adapters.checks import LARGEST_RANK, Rank
from bench.errors import BenchError
from bench.files import check_output, check_readable, fits, malformed, parse, read_text, strict_json
from bench.training.cases import Case
from bench.training.machine import versions

if TYPE_CHECKING:
    from bench.predict.result import Prediction

KIND = "measured-step"
MOST_BYTES = 4 * 2**20
MOST_STEPS = 5000
_Bytes = Annotated[int, Meta(gt=0, lt=1 << 50, description="a number of bytes")]


class _Phases(TypedDict):
    forward: _Bytes
    backward: _Bytes
    optimizer: _Bytes


class Peaks(TypedDict):
    """What is kept of either side of a step: reserved None where the device reserves nothing."""

    peak_allocated_bytes: _Bytes
    peak_reserved_bytes: _Bytes | None
    peak_by_phase: _Phases


PEAKS = tuple(Peaks.__annotations__)


class _Named(TypedDict):
    name: str


class _Device(_Named, total=False):
    """What measured: its name and, of a GPU, its compute capability and memory in bytes."""

    capability: str | None
    memory_bytes: int | None


@dataclass(frozen=True)
class MeasuredStep:
    """One step on one device."""

    kind: str
    case: Case
    device: _Device
    versions: dict[str, str]
    predicted: Peaks
    measured: Peaks

    @property
    def difference(self) -> float:
        """Predicted over measured peak allocated, less one."""
        said, seen = (d["peak_allocated_bytes"] for d in (self.predicted, self.measured))
        return float(said / seen - 1)


def measured_step(
    case: Case, device: Mapping[str, Any], predicted: Prediction, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """What is written of one step; `measured` has at least the peaks."""
    return {
        "kind": KIND,
        "case": case.to_dict(),
        "device": dict(device),
        "versions": versions(),
        "predicted": {name: getattr(predicted, name) for name in PEAKS},
        "measured": {name: measured[name] for name in PEAKS},
    }


def check_record(file: Path) -> None:
    """BenchError unless measured steps may be appended to the file: a new one, or one that holds
    such steps already."""
    check_output(file)
    if not file.exists():
        return
    if not file.is_file():
        raise BenchError(f"{file}: not a regular file: measured steps are appended to one")
    with file.open(encoding="utf-8", errors="replace") as lines:
        first = lines.readline(1 << 16)
    if first.strip() and not first.startswith(f'{{"kind": "{KIND}"'):
        raise BenchError(f"{file}: this file holds something else than measured steps")


def append_step(file: Path, step: Mapping[str, Any]) -> None:
    """Write the step as a line of its own, after one that was cut short too; all of it or nothing.
    BenchError for a full disk."""
    before = file.stat().st_size if file.exists() else None
    try:
        with file.open("a+b") as lines:
            if lines.tell():
                lines.seek(-1, 2)
                lines.write(b"" if lines.read(1) == b"\n" else b"\n")
            lines.write(json.dumps(step).encode() + b"\n")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(file, before) if before is not None else file.unlink()
        raise BenchError(f"{file}: the step was not kept: {error.strerror}") from None


def load_steps(path: Path) -> list[MeasuredStep]:
    """Every line of a file that was received, checked. BenchError names the file, the line and what
    is wrong; nothing in the file is run, and none of its paths is opened."""
    if check_readable(path) > MOST_BYTES:
        raise BenchError(f"{path}: larger than {MOST_BYTES >> 20} MiB: not measured steps")
    lines = read_text(path).splitlines()
    if len(lines) > MOST_STEPS:
        raise BenchError(f"{path}: more than {MOST_STEPS} lines")
    found = [_step(line, f"{path}: line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise BenchError(f"{path}: no measured step in it")
    return found


def _step(line: str, where: str) -> MeasuredStep:
    try:
        data = strict_json(line)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{where}: not JSON: {malformed(error)}") from None
    try:
        step = parse(data, MeasuredStep, where)
    except BenchError as error:
        raise error if where in str(error) else BenchError(f"{where}: {error}") from None
    rank = step.case.adapter.get("r", 8)
    if not fits(rank, Rank) or rank > LARGEST_RANK:
        raise BenchError(f"{where}: r must be a whole number from 1 to {LARGEST_RANK:,}")
    if step.kind != KIND:
        raise BenchError(f"{where}: kind {step.kind!r}, not {KIND!r}")
    if step.case.weights or step.case.code:
        raise BenchError(f"{where}: the case names a folder, which nobody else has")
    if Path(step.case.model).is_absolute():
        raise BenchError(f"{where}: the case names a folder, which nobody else has")
    for name in (step.device["name"], step.case.model, *step.versions.values()):
        if not name.isprintable() or len(name) > 100:
            raise BenchError(f"{where}: {name!r:.80}: not a short name")
    for peaks in (step.predicted, step.measured):
        highest = max(size for size in peaks["peak_by_phase"].values() if isinstance(size, int))
        if highest != peaks["peak_allocated_bytes"]:
            raise BenchError(
                f"{where}: peak_allocated_bytes is {peaks['peak_allocated_bytes']}, and the "
                f"highest phase's peak {highest}"
            )
    return step


def by_device(steps: Sequence[MeasuredStep]) -> list[tuple[str, str, int, float, float]]:
    """A row a device and precision: how many steps, the mean size of the differences, the largest
    with its sign (shares)."""
    groups: dict[tuple[str, str], list[float]] = {}
    for step in steps:
        key = str(step.device["name"]), step.case.precision
        groups.setdefault(key, []).append(step.difference)
    return [
        (*key, len(each), math.fsum(map(abs, each)) / len(each), max(each, key=abs))
        for key, each in groups.items()
    ]
