"""Measured steps that people send: predicted beside measured, a line of JSON each.

`MemoryCallback` and `bench memory --measure --record FILE` write them; a file that was received is
read as data alone, and refused where anything in it is not what a measured step has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, check_keys
from bench.files import check_output, read_text
from bench.training.cases import Case
from bench.training.machine import versions
from bench.training.options import PHASES

if TYPE_CHECKING:
    from bench.predict.result import Prediction

KIND = "measured-step"
MOST_BYTES = 4 * 2**20
MOST_LINES = 5000
PEAKS = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_by_phase")
"""What is kept of either side of a step."""
_KEYS = ("kind", "case", "device", "versions", "predicted", "measured")
_DEVICE = ("name", "capability", "memory_bytes")
_LARGEST = 1 << 50


@dataclass(frozen=True)
class MeasuredStep:
    """One step on one device. `predicted` and `measured` have `peak_allocated_bytes`,
    `peak_reserved_bytes` (None where the device reserves nothing) and `peak_by_phase`, in bytes;
    `device` its name and, of a GPU, its compute capability and `memory_bytes`."""

    case: Case
    device: Mapping[str, Any]
    versions: Mapping[str, str]
    predicted: Mapping[str, Any]
    measured: Mapping[str, Any]

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
    """Write the step as a line of its own, after one that was cut short too."""
    try:
        with file.open("a+b") as lines:
            if lines.tell():
                lines.seek(-1, 2)
                lines.write(b"" if lines.read(1) == b"\n" else b"\n")
            lines.write(json.dumps(step).encode() + b"\n")
    except OSError as error:
        raise BenchError(f"{file}: the step was not kept: {error.strerror}") from None


def load_steps(path: Path) -> list[MeasuredStep]:
    """Every line of a file that was received, checked. BenchError names the file, the line and what
    is wrong; nothing in the file is run, and none of its paths is opened."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BenchError(f"{path}: larger than {MOST_BYTES >> 20} MiB: not measured steps")
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: cannot be read: {error}") from None
    if len(lines) > MOST_LINES:
        raise BenchError(f"{path}: more than {MOST_LINES} lines")
    found = [_step(line, f"{path}: line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise BenchError(f"{path}: no measured step in it")
    return found


def _step(line: str, where: str) -> MeasuredStep:
    try:
        data = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{where}: not JSON: {error}") from None
    check_keys(data, where, _KEYS, _KEYS)
    if data["kind"] != KIND:
        raise BenchError(f"{where}: kind {data['kind']!r}, not {KIND!r}")
    try:
        case = Case.from_dict(data["case"])
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise BenchError(f"{where}: the case: {error}") from None
    if case.weights or case.code:
        raise BenchError(f"{where}: the case names a folder, which nobody else has")
    check_keys(data["device"], f"{where}: device", _DEVICE, ("name",))
    for table, name in (("device", "name"), *(("versions", name) for name in data["versions"])):
        value = data[table][name]
        if not isinstance(value, str) or not value.isprintable() or len(value) > 100:
            raise BenchError(f"{where}: {table} {name}: {value!r:.80}: not a short name")
    for side in ("predicted", "measured"):
        _check_peaks(data[side], f"{where}: {side}")
    return MeasuredStep(case, *(data[key] for key in _KEYS[2:]))


def _check_peaks(peaks: Any, where: str) -> None:
    check_keys(peaks, where, PEAKS, PEAKS)
    by_phase = peaks["peak_by_phase"]
    check_keys(by_phase, f"{where}: peak_by_phase", PHASES, PHASES)
    sizes = {"peak_allocated_bytes": peaks["peak_allocated_bytes"], **by_phase}
    if peaks["peak_reserved_bytes"] is not None:
        sizes["peak_reserved_bytes"] = peaks["peak_reserved_bytes"]
    for name, size in sizes.items():
        if type(size) is not int or not 0 < size < _LARGEST:
            raise BenchError(f"{where}: {name}: {size!r:.40} is no number of bytes")
    highest = max(by_phase.values())
    if highest != peaks["peak_allocated_bytes"]:
        raise BenchError(
            f"{where}: peak_allocated_bytes is {peaks['peak_allocated_bytes']}, and the highest "
            f"phase's peak {highest}"
        )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no figure")


def summary(steps: Sequence[MeasuredStep]) -> list[tuple[str, str, int, float, float]]:
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
