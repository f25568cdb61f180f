"""Measure and predict the suite's CPU steps anew, as `fixtures/measured/cpu.csv` keeps them.

python suites/selftest/step_reference.py > cpu.csv    (then move it to fixtures/measured/)
"""

from __future__ import annotations

import csv
import sys

from test_measure_memory import profiled
from test_predict_cpu import CASES, predicted

from bench.training.machine import versions

COLUMNS = ("case", "measured_bytes", "predicted_bytes")


def main() -> None:
    found = ", ".join(f"{name} {versions()[name]}" for name in ("torch", "transformers", "peft"))
    print("# Second step on the CPU, as suites/selftest/test_measure_memory.py measures it under")
    print(f"# torch.profiler, and its prediction. {found}.")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in CASES:
        measured = profiled(case).steady_step_peak_bytes
        writer.writerow((case.id, measured, predicted(case).peak_allocated_bytes))
        sys.stdout.flush()


if __name__ == "__main__":
    import peft  # noqa: F401  # what is imported within a step would count

    main()
