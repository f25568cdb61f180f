"""Measure and predict the suite's CPU steps anew, as `fixtures/measured/cpu.csv` keeps them.

python suites/selftest/step_reference.py > cpu.csv    (then move it to fixtures/measured/)
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from test_measure_memory import profiled
from test_predict_cpu import CASES, predicted

from bench.training.cases import Case

COLUMNS = ("case", "measured_bytes", "predicted_bytes")


def write_reference(cases: Iterable[Case], said: Sequence[str], packages: Sequence[str]) -> None:
    """The CSV of these cases, measured and predicted, below what is `said` and with what."""
    for line in said:
        print(f"# {line}")
    print(f"# {', '.join(f'{package} {version(package)}' for package in packages)}.")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in cases:
        measured = profiled(case).steady_step_peak_bytes
        writer.writerow((case.id, measured, predicted(case).peak_allocated_bytes))
        sys.stdout.flush()


def main() -> None:
    said = (
        "Second step on the CPU, as suites/selftest/test_measure_memory.py measures it under",
        "torch.profiler, and its prediction.",
    )
    write_reference(CASES, said, ("torch", "transformers", "peft"))


if __name__ == "__main__":
    import peft  # noqa: F401  # what is imported within a step would count

    main()
