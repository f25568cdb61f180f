"""Predict anew what the runs of GPU machines in `results/` measured, as `fixtures/measured/gpu.csv`
keeps it.

python suites/selftest/gpu_reference.py > gpu.csv    (then move it to fixtures/measured/)
"""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bench.baselines import Record, StoredRun, load_run
from bench.baselines.storage import RUN_FILE
from bench.scenarios.subjects import Request, select
from bench.training.cases import Case, StepOptions

if TYPE_CHECKING:
    from bench.predict import Prediction

RESULTS = Path(__file__).resolve().parents[2] / "results"
FIGURES = {
    "peak allocated": "peak_allocated_bytes",
    "peak reserved": "peak_reserved_bytes",
}
COLUMNS = ("figure", "gpu", "case", "precision", "measured_bytes", "predicted_bytes")


def gpu_runs() -> list[StoredRun]:
    """Runs in results/ of machines that have an accelerator: their folders name it."""
    return [
        load_run(path)
        for path in sorted(RESULTS.glob("*/*.json"))
        if RUN_FILE.fullmatch(path.name) and "-cpu-" not in path.parent.name
    ]


def measured_cases(run: StoredRun) -> list[Record]:
    """Full-size cases that a run's GPU measured."""
    return [
        record
        for record in run.records.values()
        if run.machine.accelerator is not None
        and record.suite == "measurement"
        and record.outcome == "ok"
        and "@" not in record.model
    ]


def full_size(
    model: str, scenario: str, precision: str, step: StepOptions, rank: int | None = None
) -> Case:
    """A registered scenario on the whole model."""
    request = Request((model,), (scenario,), r=rank, precisions=(precision,), full_geometry=True)
    return next(iter(select(request).measured.values())).case(step)


def stored_case(record: Record) -> Case:
    """The case that a stored record measured."""
    assert record.precision is not None
    step = StepOptions(record.detail["batch_size"], record.detail["seq_len"])
    return full_size(record.model, record.scenario, record.precision, step, record.rank)


def predicted(run: StoredRun, record: Record) -> Prediction:
    """What is said of a stored case on its run's GPU, under its run's torch: until 2.13 cublasLt
    has a workspace of its own."""
    from bench.predict import kernels, predict

    assert run.machine.accelerator is not None
    device = kernels.cuda(capability=capability(run.machine.accelerator.name))
    release = tuple(int(part) for part in run.versions["torch"].split(".")[:2])
    own = kernels.CUBLASLT_WORKSPACE if release < (2, 13) else 0
    return predict(stored_case(record), device=replace(device, lt_workspace=own))


def capability(name: str) -> float:
    """Compute capability by the GPU's name, as torch says it; 8.0 for one that is not known."""
    from bench.predict.gpus import load_gpus

    said = name.replace("-", " ").split()
    for gpu in load_gpus().values():
        model = next(word for word in gpu.name.split() if any(map(str.isdigit, word)))
        if model in said:
            return gpu.capability
    return 8.0


def main() -> None:
    print(
        "# Second step of the runs of GPU machines in results/, at full size, and its prediction."
    )
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    print(f"# Predicted with {', '.join(f'{name} {version(name)}' for name in packages)}.")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in gpu_runs():
        for record in measured_cases(run):
            said = predicted(run, record)
            for figure, name in FIGURES.items():
                gpu, case = run.machine.accelerator.name, stored_case(record).id
                sizes = record.metrics[name], getattr(said, name)
                writer.writerow((figure, gpu, case, record.precision, *sizes))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
